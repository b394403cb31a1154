use super::*;

fn weights(shape: &[usize], values: &[f32]) -> Result<Weights, ModelError> {
    Weights::from_tensors([("x".to_owned(), shape.to_vec(), values.to_vec())])
}

#[test]
fn matrices_are_rounded_to_bf16_and_vectors_are_not() {
    let matrix = weights(&[1, 2], &[1.0, 1.001]).unwrap().matrix("x").unwrap();
    assert_eq!(matrix.values, [bf16::ONE; 2]);
    assert_eq!(weights(&[2], &[1.0, 1.001]).unwrap().vector("x").unwrap(), [1.0, 1.001]);
}

#[test]
fn rank_and_name_are_checked() {
    let weights = weights(&[2, 1], &[1.0, 2.0]).unwrap();
    assert_eq!(weights.matrix("x").unwrap().values.len(), 2);
    assert_eq!(weights.names().collect::<Vec<_>>(), ["x"]);
    let rank = weights.vector("x").unwrap_err().to_string();
    assert_eq!(rank, "tensor `x` has rank 2, but is used as one of rank 1");
    assert_eq!(weights.matrix("y").unwrap_err().to_string(), "tensor `y` is missing");
}

#[test]
fn shapes_fit_values() {
    assert!(weights(&[3], &[1.0, 2.0]).is_err());
    assert!(weights(&[usize::MAX, 2], &[1.0, 2.0]).is_err());
}

#[test]
fn numbers_that_are_none_are_refused() {
    let error = weights(&[2], &[1.0, f32::NAN]).unwrap().vector("x").unwrap_err();
    assert_eq!(error.to_string(), "tensor `x` holds a value that is not a finite number");
}

#[test]
fn large_tensors_are_read_in_order() {
    let values: Vec<f32> = (0..300_000).map(|index| (index % 251) as f32).collect();
    let matrix = weights(&[1000, 300], &values).unwrap().matrix("x").unwrap();
    assert!(matrix.values.iter().zip(&values).all(|(found, expected)| found.to_f32() == *expected));
}
