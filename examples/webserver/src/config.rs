//! Configuration: words of the command line, or of the same form fixed when the image is built.

use core::net::Ipv4Addr;

use log::{LevelFilter, warn};

/// Set while building to make a sealed image that takes no command line.
const BUILT_IN: Option<&str> = option_env!("UNIKERNEL_CMDLINE");

/// What an operator may choose.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `ip=10.0.0.2/24`: the address and the length of its network's prefix.
    pub address: Option<(Ipv4Addr, u8)>,
    /// `gw=10.0.0.1`: where packets for other networks go.
    pub gateway: Option<Ipv4Addr>,
    /// `log=debug`: how much is told on the console.
    pub log: Option<LevelFilter>,
    /// `selftest=panic`: break on purpose, to see what becomes of it.
    pub selftest: Option<&'static str>,
}

impl Config {
    /// Reads the words it knows; one that it cannot read is reported and left out. The words of the network are passed over
    /// by an image without a card (`NET` false), which does not hold the code to read them.
    pub fn parse<const NET: bool>(command_line: &'static str) -> Self {
        let mut config = Self::default();
        for word in BUILT_IN.unwrap_or(command_line).split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let understood = match key {
                "ip" | "gw" if !NET => true,
                "ip" => assign(&mut config.address, address(value)),
                "gw" => assign(&mut config.gateway, numbers(value)),
                "log" => assign(&mut config.log, value.parse().ok()),
                "selftest" => assign(&mut config.selftest, Some(value)),
                _ => false,
            };
            if !understood {
                warn!("command line: cannot use \"{word}\"; known are ip=A.B.C.D/N gw=A.B.C.D log=LEVEL");
            }
        }
        config
    }
}

fn assign<T>(to: &mut Option<T>, value: Option<T>) -> bool {
    let some = value.is_some();
    if some {
        *to = value;
    }
    some
}

/// `10.0.0.2/24`; without a prefix length, that of a /24 network.
pub fn address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.trim_ascii().split_once('/').unwrap_or((text.trim_ascii(), "24"));
    let prefix = prefix.parse().ok().filter(|bits| *bits <= 32)?;
    Some((numbers(address)?, prefix))
}

/// `10.0.0.2`. The parser of `core` is one for addresses of all kinds, and larger.
fn numbers(text: &str) -> Option<Ipv4Addr> {
    // A number that begins with a zero is an octal one to some, and so is none.
    let number = |text: &str| match text.as_bytes() {
        [b'0'] | [b'1'..=b'9', ..] => text.parse().ok(),
        _ => None,
    };
    let mut parts = text.split('.').map(number);
    let mut next = || parts.next().flatten();
    let address = Ipv4Addr::new(next()?, next()?, next()?, next()?);
    parts.next().is_none().then_some(address)
}
