//! Making a port's mask follow the reasons to mask it, of which several may change at once.
#![allow(unreachable_pub, reason = "public for the loom tests alone")]

/// Masks the port if anything holds it, otherwise unmasks it. To be called after every change of what holds it.
///
/// Others may change that meanwhile, and settle the mask themselves. Whoever wrote the mask last looked at the reasons
/// after that, so in the end the two agree.
pub fn settle(is_held: impl Fn() -> bool, mask: impl Fn(), unmask: impl Fn()) {
    loop {
        let held = is_held();
        if held {
            mask();
        } else {
            unmask();
        }
        if is_held() == held {
            return;
        }
    }
}
