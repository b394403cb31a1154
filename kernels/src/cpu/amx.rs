//! Intel's tile registers (AMX): products of bf16, a few dozen rows at a time.
//!
//! ```text
//! c[r][j] += sum over k of a[r][k] * b[k][j]        in blocks of 32 k
//! ```
//!
//! An instruction sums up the even products of a block and the odd ones, each in
//! order, and adds both to `c`. So a row's sums do not depend on the rows beside it.
//!
//! - `whole`: products of whole numbers

#![expect(unsafe_code, reason = "instructions that have no stable functions yet")]

use std::{
    arch::{asm, x86_64::__cpuid_count},
    cell::Cell,
    marker::PhantomData,
    sync::OnceLock,
};

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::tile::{PANEL, Tile};
pub use whole::{WholeTiles, Wholes};

mod whole;

/// Inputs of a block: of a row of a tile.
pub const BLOCK: usize = 32;

/// Rows of two tiles.
pub const MAX_ROWS: usize = 32;

/// How far ahead weights are asked for: four blocks. Tiles are loaded so many lines at a time
/// that the processor does not foresee them by itself.
const AHEAD_BYTES: usize = 4 * BLOCK * PANEL * size_of::<bf16>();

thread_local! {
    static IS_SET_UP: Cell<bool> = const { Cell::new(false) };
}

/// A cache line: a row of a tile of activations. Tiles are loaded at half the speed where
/// their rows are not whole lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Line(pub [bf16; BLOCK]);

/// Proof that the processor has tiles of bf16 and that this process may use them.
#[derive(Clone, Copy)]
pub struct Amx(());

/// The calling thread's tile registers while they are set up.
pub struct Tiles {
    /// Of activations and sums.
    rows: usize,
    _registers: Registers,
}

/// The calling thread's tile registers while they are set up at all.
struct Registers(PhantomData<*const ()>);

/// Rows of activations: row `r` of block `i` is 32 elements from `i * step + r * stride` on.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    pub values: &'a [bf16],
    pub stride: usize,
    pub step: usize,
    /// Blocks whose sum is multiplied with the same block of weights.
    pub parts: usize,
}

/// What `ldtilecfg` reads.
#[repr(C)]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

// === impl Amx ===

impl Amx {
    /// If this processor and this system have them. Asks once.
    pub fn new() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE.get_or_init(|| exists() && is_granted()).then_some(Self(()))
    }

    /// Sets the calling thread up for so many rows, at most 32.
    ///
    /// # Panics
    /// When it is set up already.
    pub fn tiles(self, rows: usize) -> Tiles {
        assert!(0 < rows && rows <= MAX_ROWS);
        let [upper, lower] = heights(rows);
        // Sums of two tiles of rows and two of columns, the tiles of rows, the tiles of columns.
        let shapes = Shapes::new([64; 8], [upper, upper, lower, lower, upper, lower, 16, 16]);
        Tiles { rows, _registers: Registers::new(self, &shapes) }
    }
}

/// Rows of the upper and of the lower tile. A single row is computed twice.
fn heights(rows: usize) -> [usize; 2] {
    [rows.div_ceil(2), (rows / 2).max(1)]
}

/// Whether the processor has tiles, and products of bf16 with them.
fn exists() -> bool {
    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16
}

/// Asks the system for the registers' state, which it saves for nobody else.
#[cfg(target_os = "linux")]
fn is_granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: a request that reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// How other systems are asked is not known here.
#[cfg(not(target_os = "linux"))]
fn is_granted() -> bool {
    false
}

// === impl Tiles ===

impl Tiles {
    /// Multiplies all rows with a part of a panel: `[block][16][32][2]`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn multiply(&self, a: Blocks<'_>, panel: &[bf16], c: Tile<'_>) {
        let (blocks, rest) = panel.as_chunks::<{ BLOCK * PANEL }>();
        let Tile { values: sums, stride, accumulate } = c;
        assert!(rest.is_empty() && !blocks.is_empty() && a.parts > 0);
        assert!((self.rows - 1) * stride + PANEL <= sums.len());
        let (last_block, last_row) = ((blocks.len() * a.parts - 1) * a.step, (self.rows - 1) * a.stride);
        assert!(last_block + last_row + BLOCK <= a.values.len());
        let (upper, mut second) = (heights(self.rows)[0], [0.0; PANEL]);
        let (a_high, c_high) = (a.values.as_ptr(), sums.as_mut_ptr());
        let (a_low, c_low) = match self.rows {
            1 => (a_high, second.as_mut_ptr()),
            _ => (a_high.wrapping_add(upper * a.stride), c_high.wrapping_add(upper * stride)),
        };
        let halves = Halves { a: [a_high, a_low], c: [c_high, c_low], stride, accumulate };
        // SAFETY: the registers are set up for `rows` while `self` lives; the asserts say that as many
        // rows and blocks are there.
        unsafe { multiply(halves, a, blocks) };
    }
}

/// Where the upper and the lower tile of rows begin, and how the sums lie and start.
#[derive(Clone, Copy)]
struct Halves {
    a: [*const bf16; 2],
    c: [*mut f32; 2],
    stride: usize,
    accumulate: bool,
}

/// # Safety
/// The registers must be set up for the heights of the halves, and their rows in memory.
unsafe fn multiply(halves: Halves, a: Blocks<'_>, blocks: &[[bf16; BLOCK * PANEL]]) {
    let Halves { stride, accumulate, .. } = halves;
    const ELEMENT: usize = size_of::<bf16>();
    let panel = blocks.as_ptr().cast::<u8>();
    // SAFETY: as the caller promises. Any address may be prefetched.
    unsafe {
        asm!(
            "tilezero tmm0; tilezero tmm1; tilezero tmm2; tilezero tmm3",
            "test {part}, {part}; jz 2f",
            "tileloadd tmm0, [{c} + {sums}]",
            "tileloadd tmm1, [{c} + {sums} + 64]",
            "tileloadd tmm2, [{c_low} + {sums}]",
            "tileloadd tmm3, [{c_low} + {sums} + 64]",
            "2:",
            "tileloadd tmm6, [{b} + {pair}]",
            "tileloadd tmm7, [{b} + {pair} + 64]",
            "lea {next}, [{b} + {ahead}]",
            "mov {part}, {parts}",
            "3:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloadd tmm5, [{a_low} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next}]; prefetcht1 [{next} + 64]; prefetcht1 [{next} + 128]; prefetcht1 [{next} + 192]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next} + 256]; prefetcht1 [{next} + 320]; prefetcht1 [{next} + 384]; prefetcht1 [{next} + 448]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{next} + 512]; prefetcht1 [{next} + 576]; prefetcht1 [{next} + 640]; prefetcht1 [{next} + 704]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next} + 768]; prefetcht1 [{next} + 832]; prefetcht1 [{next} + 896]; prefetcht1 [{next} + 960]",
            "add {a}, {step}; add {a_low}, {step}; add {next}, 1024",
            "dec {part}; jnz 3b",
            "add {b}, {block}",
            "cmp {b}, {end}; jne 2b",
            "tilestored [{c} + {sums}], tmm0",
            "tilestored [{c} + {sums} + 64], tmm1",
            "tilestored [{c_low} + {sums}], tmm2",
            "tilestored [{c_low} + {sums} + 64], tmm3",
            a = inout(reg) halves.a[0] => _,
            a_low = inout(reg) halves.a[1] => _,
            row = in(reg) a.stride * ELEMENT,
            step = in(reg) a.step * ELEMENT,
            b = inout(reg) panel => _,
            next = out(reg) _,
            ahead = const AHEAD_BYTES,
            end = in(reg) panel.wrapping_add(size_of_val(blocks)),
            parts = in(reg) a.parts,
            part = inout(reg) usize::from(accumulate) => _,
            c = in(reg) halves.c[0],
            c_low = in(reg) halves.c[1],
            sums = in(reg) stride * size_of::<f32>(),
            pair = in(reg) 2 * PANEL * ELEMENT,
            block = const BLOCK * PANEL * ELEMENT,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

// === impl Shapes ===

impl Shapes {
    /// Bytes of a row, and rows, of each register.
    fn new(widths: [u16; 8], heights: [usize; 8]) -> Self {
        let mut shapes = Self { palette: 1, start: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        shapes.row_bytes[..8].copy_from_slice(&widths);
        for (to, rows) in shapes.rows.iter_mut().zip(heights) {
            *to = rows as u8;
        }
        shapes
    }
}

// === impl Registers ===

impl Registers {
    /// `shapes` must fit into registers.
    ///
    /// # Panics
    /// When they are set up already.
    fn new(_: Amx, shapes: &Shapes) -> Self {
        assert!(!IS_SET_UP.replace(true), "tiles within tiles");
        // SAFETY: the first argument proves that there are tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) shapes, options(nostack, preserves_flags, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Registers {
    /// Threads without tiles are cheaper to switch to and from.
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        IS_SET_UP.set(false);
    }
}

#[cfg(test)]
mod tests;
