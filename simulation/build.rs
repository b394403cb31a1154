//! The crate `getrandom` asks the dynamic linker for its system call: has it find ours.

fn main() {
    println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol=getrandom");
}
