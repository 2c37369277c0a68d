//! The server's own pages.

use anyhow::{Result, ensure};

use super::Site;

pub(super) fn the_status_page_is_html_that_needs_no_script(site: &Site) -> Result<()> {
    let answer = site.get("/-/status")?.expect(200)?;
    ensure!(
        answer.header("content-type") == "text/html; charset=utf-8",
        "type {:?}",
        answer.header("content-type")
    );
    ensure!(answer.header("cache-control") == "no-store", "it may be cached");
    let page = answer.text()?;
    for word in [
        "Domain",
        "uuid",
        "Xen version",
        "uptime seconds",
        "memory used bytes",
        "Network",
        "Disk",
        "Web server",
    ] {
        ensure!(page.contains(word), "no {word:?} in\n{page}");
    }
    ensure!(!page.contains("<script") && !page.contains("http://"), "it needs something else:\n{page}");
    Ok(())
}

pub(super) fn the_metrics_are_in_the_format_of_prometheus(site: &Site) -> Result<()> {
    let page = site.get("/-/metrics")?.expect(200)?.text()?;
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
    };
    let mut types = 0;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let ok = rest.split_once(' ').is_some_and(|(name, kind)| {
                is_name(name)
                    && (kind == "counter") == name.ends_with("_total")
                    && ["counter", "gauge"].contains(&kind)
            });
            ensure!(ok, "not a type: {line}");
            types += 1;
            continue;
        }
        let (what, value) = line.rsplit_once(' ').unwrap_or_default();
        let (name, labels) = what.split_once('{').map_or((what, None), |(name, rest)| (name, Some(rest)));
        ensure!(is_name(name) && value.parse::<f64>().is_ok(), "not a sample: {line}");
        ensure!(
            labels.is_none_or(|labels| labels.ends_with("\"}") && labels.contains("=\"")),
            "bad labels: {line}"
        );
    }
    ensure!(types > 10, "only {types} metrics:\n{page}");
    let before = site.metric("http_requests_total")?;
    site.get("/hello.txt")?.expect(200)?;
    let after = site.metric("http_requests_total")?;
    ensure!(after >= before + 2, "two requests were counted as {}", after - before);
    Ok(())
}

pub(super) fn bytes_are_made_and_taken_without_a_disk(site: &Site) -> Result<()> {
    let read = "disk_requests_total";
    let before = site.metric(read)?;
    for length in [0, 1, 1_000_000] {
        let made = site.get(&format!("/-/bytes/{length}"))?.expect(200)?.body.len();
        ensure!(made == length, "{made} bytes instead of {length}");
    }
    let received = site.metric("http_received_bytes_total")?;
    for body in [vec![], vec![b'x'; 1_000_000]] {
        site.put("/-/discard", &body)?.expect(204)?;
    }
    ensure!(site.metric("http_received_bytes_total")? >= received + 1_000_000, "the body did not arrive");
    ensure!(site.metric(read)? == before, "the disk was asked");
    Ok(())
}
