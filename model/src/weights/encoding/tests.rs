use serde::Deserialize;

use super::*;

/// Blocks and what the `gguf` package reads from them: `tests/golden/quantisations.py`.
const VECTORS: &str = include_str!("../../../../tests/golden/quantisations.json");

#[derive(Deserialize)]
struct Vector {
    name: String,
    code: u32,
    /// Hex of the blocks.
    raw: String,
    /// Hex of little-endian f32.
    values: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |digit: u8| (digit as char).to_digit(16).unwrap() as u8;
    hex.as_bytes().chunks(2).map(|two| digit(two[0]) << 4 | digit(two[1])).collect()
}

fn decode(encoding: Encoding, raw: &[u8]) -> Vec<bf16> {
    let mut words = vec![0u32; raw.len().div_ceil(4)];
    let aligned = &mut bytemuck::cast_slice_mut(&mut words)[..raw.len()];
    aligned.copy_from_slice(raw);
    let mut values = vec![bf16::NAN; raw.len() / encoding.block_bytes() * encoding.block_values()];
    encoding.decode(aligned, &mut values).unwrap();
    values
}

#[test]
fn blocks_are_read_as_the_gguf_package_reads_them() {
    let vectors: Vec<Vector> = serde_json::from_str(VECTORS).unwrap();
    assert_eq!(vectors.len(), 10);
    for Vector { name, code, raw, values } in &vectors {
        let encoding = Encoding::from_gguf(*code).unwrap();
        let expected: Vec<f32> =
            bytes(values).as_chunks().0.iter().map(|raw| f32::from_le_bytes(*raw)).collect();
        let found = decode(encoding, &bytes(raw));
        assert_eq!(found.len(), 512, "{name}");
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_f32(), bf16::from_f32(*expected).to_f32(), "{name} at {index}");
        }
    }
}

#[test]
fn f16_is_read_exactly_and_rounded_to_even() {
    // One, the smallest subnormal, a large subnormal, the greatest, minus zero.
    let halves = [0x3c00, 0x0001, 0x03ff, 0x7bff, 0x8000_u16];
    let found = decode(Encoding::F16, &halves.map(u16::to_le_bytes).concat());
    let expected = [1.0, 2.0_f32.powi(-24), 1023.0 * 2.0_f32.powi(-24), 65504.0, -0.0];
    assert_eq!(found, expected.map(bf16::from_f32));
    assert_eq!(found[2].to_f32(), 2.0_f32.powi(-14), "1023 needs ten bits, and bf16 has eight");
    // 1 + 2^-8 lies between 1 and 1 + 2^-7, 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6.
    let ties = [0x3c04, 0x3c0c_u16].map(u16::to_le_bytes).concat();
    assert_eq!(decode(Encoding::F16, &ties), [1.0, 1.015_625].map(bf16::from_f32));
}

#[test]
fn f32_is_rounded_to_even() {
    let values = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x0000_8001, 0x7f7f_8000_u32];
    let found = decode(Encoding::F32, &values.map(u32::to_le_bytes).concat());
    assert_eq!(
        found.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
        [0x3f80, 0x3f82, 0x3f81, 0x0001, 0x7f80]
    );
}

#[test]
fn bf16_is_kept() {
    let found = decode(Encoding::Bf16, &[0x81, 0x3f, 0x01, 0x80]);
    assert_eq!(found.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), [0x3f81, 0x8001]);
}

#[test]
fn what_is_not_read_has_a_name() {
    let supported = (0..64).filter(|code| Encoding::from_gguf(*code).is_some()).count();
    assert_eq!(supported, 13);
    assert_eq!([9, 16, 23, 77].map(Encoding::gguf_name), ["Q8_1", "IQ2_XXS", "IQ4_XS", "number 77"]);
}
