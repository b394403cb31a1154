//! The compiled kernels, embedded.

/// The driver reads an image's header in words.
#[repr(align(16))]
struct Aligned<T: ?Sized>(T);

/// Name of the source, and its fat binary.
static IMAGES: &[(&str, &Aligned<[u8]>)] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Name and bytes of each image.
pub(super) fn images() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().map(|(name, image)| (*name, &image.0))
}
