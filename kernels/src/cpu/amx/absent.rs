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
