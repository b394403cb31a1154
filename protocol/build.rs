//! Generates the wire messages and service stubs from `proto/`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure().bytes(".").compile_protos(&["proto/baton.proto"], &["proto"])?;
    Ok(())
}
