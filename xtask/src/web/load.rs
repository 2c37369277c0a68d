//! Many requests.

use std::thread;

use anyhow::{Result, anyhow, ensure};

use super::{Site, agent, answer};

pub(super) fn a_thousand_requests_over_sixteen_connections(site: &Site) -> Result<()> {
    const CONNECTIONS: usize = 16;
    const REQUESTS: usize = 1000;
    let before = site.metric("http_connections_total")?;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS)
            .map(|worker| {
                scope.spawn(move || {
                    let agent = agent(1);
                    for number in (worker..REQUESTS).step_by(CONNECTIONS) {
                        let path = if number % 4 == 0 { "/-/metrics" } else { "/hello.txt" };
                        let answer = answer(agent.get(site.url(path)).call());
                        let answer = answer.and_then(|answer| answer.expect(200));
                        let answer =
                            answer.map_err(|error| error.context(format!("request {number}, {path}")))?;
                        ensure!(number % 4 == 0 || answer.body.len() == 21, "request {number}: another body");
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    let used = site.metric("http_connections_total")? - before;
    ensure!(used <= CONNECTIONS as u64 + 2, "{used} connections for {CONNECTIONS} clients that keep theirs");
    Ok(())
}
