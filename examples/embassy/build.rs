//! How the image is linked.

fn main() {
    xen_rt::build::image();
}
