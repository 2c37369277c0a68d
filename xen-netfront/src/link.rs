//! What ties a device to its backend, and whether a cable is plugged in, so to speak.

use xen_xenstore::Watch;
use xen_xenstore::xenbus::{BackendChange, Connected, Frontend, XenbusState};

use crate::State;

/// The device in xenstore.
pub(crate) struct Tie {
    pub(crate) device: Frontend<Connected>,
    /// The nodes that tell of the link: `carrier` by the backend, `disconnect` by the toolstack in our own directory. None if they
    /// are not followed.
    pub(crate) watches: [Option<Watch>; 2],
}

/// What a look at the backend has found.
pub(crate) struct News {
    /// How the device is now.
    pub(crate) state: State,
    /// Whether the link is up, if that was looked at.
    pub(crate) up: Option<bool>,
    /// The backend says once more that it is connected: it was started again, and took up the rings where they were.
    pub(crate) taken_up: bool,
}

impl News {
    /// What a change of the backend makes of a device in this state.
    pub(crate) fn of(change: BackendChange, state: State) -> Self {
        let next = match change {
            BackendChange::Same => state,
            BackendChange::Told(_) if state != State::Closing => state,
            BackendChange::Closing => State::Closing,
            // Nobody is behind the rings.
            _ => State::Closed,
        };
        let mut news = Self { state: next, up: None, taken_up: false };
        news.taken_up = news.is_at_work() && change == BackendChange::Told(XenbusState::CONNECTED);
        news
    }

    /// Whether the backend is behind the rings.
    pub(crate) fn is_at_work(&self) -> bool {
        matches!(self.state, State::Connected | State::Broken(_))
    }
}
