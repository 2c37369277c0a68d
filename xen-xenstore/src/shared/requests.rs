//! What the toolstack asks of the whole domain, for a task.

use core::fmt;

use xen_hypercall::{Platform, Wait};

use super::{Client, SharedStore, Watching};
use crate::control::{FEATURES, NODE, Request, request};
use crate::way::tasks::Ask;
use crate::{Error, Question};

/// The requests of the toolstack, as a [`ShutdownWatch`](crate::control::ShutdownWatch) tells them, for a task.
pub struct ShutdownRequests<'s, 'x, P: Platform + Wait> {
    client: Client<'s, 'x, P>,
    watch: Watching<'s, 'x, P>,
    /// The node is to be looked at.
    looks: bool,
}

impl<'s, 'x, P: Platform + Wait> ShutdownRequests<'s, 'x, P> {
    pub(super) async fn new(store: &'s SharedStore<'x, P>, obeys: &[Request]) -> Result<Self, Error> {
        let client = store.client();
        let watch = client.watch(NODE).await?;
        let obeys = FEATURES.map(|(request, _)| obeys.contains(&request));
        let paths = FEATURES.map(|(_, path)| core::str::from_utf8(path).unwrap_or_default());
        let questions = paths.iter().zip(obeys).map(|(path, obeyed)| {
            let value: &[u8] = if obeyed { b"1" } else { b"0" };
            Question::write(path, value)
        });
        // Some toolstacks keep the directory to themselves, and refuse; requests still arrive.
        client.conversation().together(questions, |_, _| ()).await?;
        // Told again in a new domain.
        store.with(|state| state.xs.obeys = Some(obeys));
        Ok(Self { client, watch, looks: true })
    }

    /// Waits for the next request. Words that are no request are ignored. The future may be dropped: the request is found by the next
    /// call.
    ///
    /// Nothing is acknowledged: a guest that does as it is asked [accepts](Self::accept) the request first.
    ///
    /// # Errors
    /// When xenstore cannot be asked. The request, if there is one, is found by the next call.
    pub async fn next(&mut self) -> Result<Request, Error> {
        loop {
            if !self.looks {
                self.watch.changed().await?;
                self.looks = true;
            }
            let asked = match self.client.read(NODE, |word| request(Ok(word))).await {
                Err(error) if error.is_not_found() => None,
                asked => asked?,
            };
            self.looks = false;
            if let Some(request) = asked {
                return Ok(request);
            }
        }
    }

    /// Acknowledges a request, which the guest then has to obey. Returns `false`, and does nothing, when the request does not
    /// stand any more; what is there instead [`next`](Self::next) returns.
    ///
    /// # Errors
    /// When xenstore cannot be asked, or refuses. After an error of the connection it is not known whether the toolstack has seen it
    /// accepted.
    pub async fn accept(&mut self, request: Request) -> Result<bool, Error> {
        // Whatever is there afterwards is found by the next look.
        self.looks = true;
        self.client
            .transaction(async |transaction| {
                let stands = match transaction.read(NODE, |word| Ok(word == request.word())).await {
                    Err(error) if error.is_not_found() => false,
                    stands => stands?,
                };
                if stands {
                    transaction.write(NODE, b"").await?;
                }
                Ok(stands)
            })
            .await
    }
}

impl<P: Platform + Wait> fmt::Debug for ShutdownRequests<'_, '_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShutdownRequests")
    }
}
