//! Waiting for backends, and for one of two things.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use xen_hypercall::{Platform, Wait};
use xen_xenstore::Path;
use xen_xenstore::shared::Client;
use xen_xenstore::xenbus::XenbusState;

use crate::Error;

/// Waits until a backend waits for the disk of this number, or would begin anew with it.
pub(super) async fn find_backend<P: Platform + Wait>(
    client: Client<'_, '_, P>,
    index: u32,
) -> Result<(), xen_xenstore::Error> {
    let own = Path::format(format_args!("device/vbd/{}", index))?;
    let node = own.join("backend")?;
    let mut device = client.watch(&node).await?;
    loop {
        // What happens from here on is told.
        device.has_changed()?;
        match client.read(&node, path_of).await {
            Ok(path) => {
                let mut backend = client.watch(&path).await?;
                loop {
                    backend.has_changed()?;
                    if is_waiting(client, &own, &path).await? {
                        return Ok(());
                    }
                    if let First::Other =
                        either(backend.changed(), async { device.changed().await.unwrap_or(()) }).await
                    {
                        break;
                    }
                }
            }
            Err(error) => {
                passes(error)?;
                device.changed().await?;
            }
        }
    }
}

/// Waits until the toolstack has made the disk of this number anew, or its backend's domain has gone.
pub(super) async fn find_other<P: Platform + Wait>(
    client: Client<'_, '_, P>,
    index: u32,
) -> Result<(), xen_xenstore::Error> {
    let node = Path::format(format_args!("device/vbd/{}/backend", index))?;
    let mut device = client.watch(&node).await?;
    // The first event is that it is set.
    device.changed().await?;
    let path = match client.read(&node, path_of).await {
        Ok(path) => path,
        Err(error) => return passes(error),
    };
    let mut backend = client.watch(&path).await?;
    loop {
        backend.has_changed()?;
        match client.read_parsed(&path.join("state")?).await {
            Ok(XenbusState::UNKNOWN) => return Ok(()),
            Ok(_) => {}
            Err(error) => return passes(error),
        }
        if let First::Other = either(backend.changed(), async { device.changed().await.unwrap_or(()) }).await
        {
            return Ok(());
        }
    }
}

/// The path that a node says.
fn path_of(value: &[u8]) -> Result<Path, xen_xenstore::Error> {
    let text = core::str::from_utf8(value).map_err(|_| xen_xenstore::Error::NotText)?;
    Path::new(text)
}

/// Whether a backend waits for the device of this directory, or would begin anew with it.
async fn is_waiting<P: Platform + Wait>(
    client: Client<'_, '_, P>,
    device: &Path,
    path: &Path,
) -> Result<bool, xen_xenstore::Error> {
    let state = match client.read_parsed(&path.join("state")?).await {
        Ok(state) => state,
        Err(error) => return passes(error).map(|()| false),
    };
    if ![XenbusState::CLOSING, XenbusState::CLOSED].contains(&state) {
        // One that is at work is so for an earlier kernel, or for somebody who was dropped.
        return Ok(state != XenbusState::UNKNOWN);
    }
    let online = match client.read_parsed::<u32>(&path.join("online")?).await {
        Ok(online) => online == 1,
        Err(error) => return passes(error).map(|()| false),
    };
    if state == XenbusState::CLOSING && !online {
        // It is to go, and waits for whoever had it before.
        let ours = device.join("state")?;
        let closed = client.transaction(async |transaction| {
            match transaction.read_optional::<XenbusState>(&ours).await? {
                None | Some(XenbusState::CLOSED) => Ok(()),
                Some(_) => transaction.write_display(&ours, XenbusState::CLOSED).await,
            }
        });
        closed.await.or_else(passes)?;
    }
    Ok(online)
}

/// An error that another look need not have, unless the connection to xenstore is of no use any more.
pub(super) fn passes(error: xen_xenstore::Error) -> Result<(), xen_xenstore::Error> {
    match error {
        xen_xenstore::Error::Broken(_) | xen_xenstore::Error::Disconnected(_) => Err(error),
        _ => Ok(()),
    }
}

/// Waits for `work`, and calls `over` when `grace` is ready before.
pub(super) async fn with_grace<W: Future>(
    work: W,
    grace: impl Future<Output = ()>,
    over: impl FnOnce(),
) -> W::Output {
    let (mut work, mut grace) = (pin!(work), pin!(grace));
    let mut over = Some(over);
    poll_fn(|cx| {
        let done = work.as_mut().poll(cx);
        if done.is_pending() && over.is_some() && grace.as_mut().poll(cx).is_ready() {
            if let Some(over) = over.take() {
                over();
            }
        }
        done
    })
    .await
}

/// What was ready first.
pub(super) enum First<T> {
    Work(T),
    Other,
}

impl<T> First<Result<T, xen_xenstore::Error>> {
    /// An end of the connection to xenstore.
    pub(super) fn transpose_end(self) -> Result<(), Error> {
        match self {
            Self::Work(Err(error)) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Waits for one of two.
pub(super) async fn either<W: Future>(work: W, other: impl Future<Output = ()>) -> First<W::Output> {
    let (mut work, mut other) = (pin!(work), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(First::Work(output));
        }
        other.as_mut().poll(cx).map(|()| First::Other)
    })
    .await
}
