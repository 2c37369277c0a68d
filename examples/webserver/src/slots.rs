//! Places for connections, which come and go with them: the stack looks at each for every packet that it sends.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp;

use crate::http::Connection;

/// Connections that are served at once; a few more are told to come back later.
pub(crate) const SERVED: usize = 32;
const REFUSED: usize = 8;
/// Places that are kept free, so that short connections one after the other do not make one each.
const FREE: usize = 3;

const RECEIVE: usize = 16 * 1024;
const SEND: usize = 32 * 1024;
/// A peer waits for this machine whenever a buffer is full or empty. So many connections at once get as much as lets
/// bytes flow without that; so much for each would be most of a small domain's memory.
const FAST: usize = 4;
const FAST_RECEIVE: usize = 512 * 1024;
/// As much as the card's ring holds: what is on its way and what is put together next are both in it.
const FAST_SEND: usize = 1024 * 1024;

/// The places there are.
#[derive(Default)]
pub(crate) struct Slots {
    pub(crate) connections: Vec<Connection>,
}

impl Slots {
    /// Sees to it that somebody listens, unless there are as many connections as there may be. Quickly: for somebody who
    /// is at the door already.
    pub(crate) fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        if !self.connections.iter().any(|connection| listens(connection, sockets)) {
            self.add(sockets, RECEIVE, SEND);
        }
    }

    /// Sees to it that whoever comes next gets large buffers, as long as there are some. To fill them takes a while.
    pub(crate) fn prepare(&mut self, sockets: &mut SocketSet<'static>) {
        let large = || self.connections.iter().filter(|connection| is_large(connection, sockets));
        if large().count() >= FAST || large().any(|connection| listens(connection, sockets)) {
            return;
        }
        if self.add(sockets, FAST_RECEIVE, FAST_SEND) {
            self.trim(sockets);
        }
    }

    /// Adds a place with buffers of these sizes, if there may be one more and there is memory for it.
    fn add(&mut self, sockets: &mut SocketSet<'static>, receive: usize, send: usize) -> bool {
        // Asked before a byte is filled: in a small domain the answer is no in every round.
        if self.connections.len() >= SERVED + REFUSED || !has_memory(receive + send) {
            return false;
        }
        let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket = tcp::Socket::new(buffer(receive), buffer(send));
        // The end of an answer is not to wait for what came before it to be acknowledged, which takes a peer up to 40 ms.
        socket.set_nagle_enabled(false);
        let mut connection = Connection::new(sockets.add(socket));
        connection.listen(sockets.get_mut(connection.handle));
        self.connections.push(connection);
        true
    }

    /// Gives places back that nobody needs: all small ones while a large one is free, for the stack takes whichever is first.
    pub(crate) fn trim(&mut self, sockets: &mut SocketSet<'static>) {
        let free_large = self.connections.iter().any(|c| listens(c, sockets) && is_large(c, sockets));
        let mut free = 0;
        self.connections.retain(|connection| {
            if !listens(connection, sockets) {
                return true;
            }
            let stays = free < FREE && (!free_large || is_large(connection, sockets));
            free += usize::from(stays);
            if !stays {
                sockets.remove(connection.handle);
            }
            stays
        });
    }
}

fn is_large(connection: &Connection, sockets: &SocketSet<'static>) -> bool {
    sockets.get::<tcp::Socket<'_>>(connection.handle).send_capacity() == FAST_SEND
}

fn listens(connection: &Connection, sockets: &SocketSet<'static>) -> bool {
    sockets.get::<tcp::Socket<'_>>(connection.handle).is_listening()
}

/// Whether there are so many bytes, and as many again: others need memory, too, and cannot do without.
pub(crate) fn has_memory(bytes: usize) -> bool {
    let (mut these, mut more): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
    these.try_reserve_exact(bytes).and_then(|()| more.try_reserve_exact(bytes)).is_ok()
}
