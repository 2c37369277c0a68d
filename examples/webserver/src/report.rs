//! One set of facts and figures, and its three faces: a page, metrics, console text.

use alloc::string::String;
use core::fmt::{Display, Write};

/// Takes facts and figures in sections.
pub trait Report {
    /// Begins a section, such as "Network".
    fn section(&mut self, title: &str);
    /// A fact in words.
    fn fact(&mut self, name: &str, value: &dyn Display);
    /// A figure that only grows (its name ends in `_total`) or that goes up and down.
    fn figure(&mut self, name: &str, value: u64);
}

/// An HTML page that needs neither script nor style sheet from elsewhere.
#[derive(Debug)]
pub(crate) struct Html {
    text: String,
    open: bool,
}

const HEAD: &str = "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\">\
    <meta name=\"viewport\" content=\"width=device-width\"><title>Status</title><style>\
    body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
    h2{font-size:1.1rem;margin:1.6rem 0 .3rem}table{border-collapse:collapse;width:100%}\
    td{padding:.2rem .6rem .2rem 0;border-bottom:1px solid #e3e6ea}td+td{text-align:right;\
    font-variant-numeric:tabular-nums;overflow-wrap:anywhere}a{color:#0b57d0}</style>\
    <h1>Status</h1><p>A unikernel in Rust, straight on the hypervisor. \
    <a href=\"/\">Files</a> &middot; <a href=\"/-/metrics\">Metrics</a></p>";

impl Default for Html {
    fn default() -> Self {
        Self::new()
    }
}

impl Html {
    pub(crate) fn new() -> Self {
        Self { text: String::from(HEAD), open: false }
    }

    fn row(&mut self, name: &dyn Display, value: &dyn Display) {
        let _ = write!(self.text, "<tr><td>{}</td><td>{}</td></tr>", escaped(name), escaped(value));
    }

    pub(crate) fn finish(mut self) -> String {
        self.text.push_str("</table></html>\n");
        self.text
    }
}

impl Report for Html {
    fn section(&mut self, title: &str) {
        let end = if core::mem::replace(&mut self.open, true) { "</table>" } else { "" };
        let _ = write!(self.text, "{end}<h2>{title}</h2><table>");
    }

    fn fact(&mut self, name: &str, value: &dyn Display) {
        self.row(&name, value);
    }

    fn figure(&mut self, name: &str, value: u64) {
        let name = name.strip_suffix("_total").unwrap_or(name);
        self.row(&Replaced(&name, |c| (c == '_').then_some(" ")), &value);
    }
}

/// Shows something with some of its characters replaced.
struct Replaced<'a>(&'a dyn Display, fn(char) -> Option<&'static str>);

impl Display for Replaced<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        struct Through<'a, 'b>(&'a mut core::fmt::Formatter<'b>, fn(char) -> Option<&'static str>);
        impl Write for Through<'_, '_> {
            fn write_str(&mut self, s: &str) -> core::fmt::Result {
                s.chars().try_for_each(|c| match (self.1)(c) {
                    Some(other) => self.0.write_str(other),
                    None => self.0.write_char(c),
                })
            }
        }
        write!(Through(f, self.1), "{}", self.0)
    }
}

/// Text with what HTML gives a meaning replaced.
pub(crate) fn escaped<'a>(text: &'a dyn Display) -> impl Display + 'a {
    Replaced(text, |c| match c {
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '&' => Some("&amp;"),
        '"' => Some("&quot;"),
        '\'' => Some("&#39;"),
        _ => None,
    })
}

/// The Prometheus text format, version 0.0.4.
#[derive(Debug, Default)]
pub(crate) struct Metrics(pub(crate) String);

impl Report for Metrics {
    fn section(&mut self, _title: &str) {}

    fn fact(&mut self, name: &str, value: &dyn Display) {
        let quoted = Replaced(value, |c| match c {
            '\\' => Some("\\\\"),
            '"' => Some("\\\""),
            '\n' => Some("\\n"),
            _ => None,
        });
        let name = name.to_ascii_lowercase();
        let name = Replaced(&name, |c| matches!(c, ' ' | '-').then_some("_"));
        let _ = writeln!(self.0, "unikernel_info{{{name}=\"{quoted}\"}} 1");
    }

    fn figure(&mut self, name: &str, value: u64) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n{name} {value}");
    }
}

/// Lines for the console, of the chosen sections (none chosen: of all).
#[derive(Debug)]
pub(crate) struct Console<'a> {
    text: String,
    sections: &'a [&'a str],
    chosen: bool,
}

impl<'a> Console<'a> {
    pub(crate) fn new(sections: &'a [&'a str]) -> Self {
        Self { text: String::new(), sections, chosen: false }
    }

    pub(crate) fn finish(mut self) -> String {
        if self.text.is_empty() {
            self.text.push_str("there is none\n");
        }
        self.text
    }

    fn line(&mut self, name: &str, value: &dyn Display) {
        if self.chosen {
            let _ = writeln!(self.text, "  {name:<32} {value}");
        }
    }
}

impl Report for Console<'_> {
    fn section(&mut self, title: &str) {
        self.chosen = self.sections.is_empty() || self.sections.contains(&title);
        if self.chosen {
            let _ = writeln!(self.text, "{title}");
        }
    }

    fn fact(&mut self, name: &str, value: &dyn Display) {
        self.line(name, value);
    }

    fn figure(&mut self, name: &str, value: u64) {
        self.line(name, &value);
    }
}
