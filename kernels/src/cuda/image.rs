//! The compiled kernels, embedded.

use super::Dtype;

/// The driver reads an image's header in words.
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

/// A source's fat binary.
struct Image {
    source: &'static str,
    /// What it computes in, if the source is compiled for each.
    dtype: Option<Dtype>,
    bytes: &'static Aligned<[u8]>,
}

static IMAGES: &[Image] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Source and bytes of each image for cards that compute in `dtype`.
pub(super) fn images(dtype: Dtype) -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let fits = move |image: &&Image| image.dtype.is_none_or(|its| its == dtype);
    IMAGES.iter().filter(fits).map(|image| (image.source, &image.bytes.0))
}
