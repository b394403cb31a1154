//! Processors of other makes have no tiles of this kind.

use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::tile::Tile;

pub const BLOCK: usize = 32;
pub const MAX_ROWS: usize = 32;

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Line(pub [bf16; BLOCK]);

#[derive(Clone, Copy)]
pub enum Amx {}

pub enum Tiles {}

#[derive(Clone, Copy)]
#[expect(dead_code, reason = "nothing multiplies them here")]
pub struct Blocks<'a> {
    pub values: &'a [bf16],
    pub stride: usize,
    pub step: usize,
    pub parts: usize,
}

impl Amx {
    pub fn tiles(self, _rows: usize) -> Tiles {
        match self {}
    }
}

impl Tiles {
    pub fn multiply(&self, _a: Blocks<'_>, _panel: &[bf16], _c: Tile<'_>) {
        match *self {}
    }
}

pub struct Wholes(pub [[[[i32; 16]; 16]; 2]; 2]);

impl Wholes {
    pub const ZERO: Self = Self([[[[0; 16]; 16]; 2]; 2]);
}

pub enum WholeTiles {}

impl Amx {
    pub fn whole_tiles(self, _rows: usize) -> WholeTiles {
        match self {}
    }
}

impl WholeTiles {
    pub fn multiply(&self, _rows: &[[i8; 64]], _quads: &[[[u8; 64]; 8]; 2], _sums: &mut Wholes) {
        match *self {}
    }
}
