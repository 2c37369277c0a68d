//! What Xen's log says of a guest.

/// How Xen notes a call of a guest for arm64 that it does not know. A kernel without a console speaks by the numbers of such calls.
const NOTE: &str = "Unhandled SMC/HVC: 0x";
/// The highest byte of the numbers that are words. The others are up to three bytes of text.
const WORDS: u8 = 0x3F;

/// Whether a line of Xen's log tells of the domain `id`: `d1`, or `d1v0` for one of its vCPUs.
pub(crate) fn is_of(line: &str, id: u32) -> bool {
    let name = format!("d{id}");
    line.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| word.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('v')))
}

/// What kernels for arm64 said in some of the log's lines.
pub(crate) fn said<'l>(lines: impl IntoIterator<Item = &'l str>) -> String {
    let numbers = lines.into_iter().filter_map(|line| line.split_once(NOTE));
    let numbers = numbers.filter_map(|(_, number)| u32::from_str_radix(number.trim_end(), 16).ok());
    let words = numbers.map(u32::to_be_bytes).filter(|[kind, ..]| *kind == WORDS);
    let bytes: Vec<u8> = words.flat_map(|[_, text @ ..]| text).filter(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_domain_are_told_from_those_of_others() {
        assert!(is_of("(XEN) d1v0 Unhandled SMC/HVC: 0x84000050", 1));
        assert!(is_of("(d1) hello", 1));
        assert!(is_of("(XEN) Domain crashed: d1", 1));
        assert!(!is_of("(d12) hello", 1));
        assert!(!is_of("(XEN) d0v1 said d 1", 1));
    }

    #[test]
    fn numbers_of_calls_are_text() {
        let log = "(XEN) d1v0 Unhandled SMC/HVC: 0x84000050\n(XEN) d1v0 Unhandled SMC/HVC: 0x3f612062\r\n(XEN) else\n\
                   (XEN) arch/arm/vsmc.c:300:d1v0 Unhandled SMC/HVC: 0x3f00007a\n(XEN) d1v0 Unhandled SMC/HVC: 0x";
        assert_eq!(said(log.lines()), "a bz");
        assert_eq!(said([]), "");
    }
}
