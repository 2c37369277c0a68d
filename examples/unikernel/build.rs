//! How the image is linked, and what is fixed in it.

fn main() {
    xen_rt::build::image();
    println!("cargo:rerun-if-env-changed=UNIKERNEL_CMDLINE");
}
