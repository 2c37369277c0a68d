//! The token of a domain is not cloned.
use xen_hypercall::{Domain, Platform};

fn two<P: Platform + Clone>(token: Domain<P>) -> (Domain<P>, Domain<P>) {
    (token.clone(), token)
}

fn main() {}
