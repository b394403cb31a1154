//! What is shown of runs, and how they are kept.
//!
//! - [`RunFile`]: runs as JSON
//! - [`html`]: a page with plots; [`Plot`]: one of them
//! - [`Table`]: rows for people, as Markdown or CSV; [`tables`]: those of runs

mod axis;
pub mod html;
mod plot;
mod run_file;
mod table;
pub mod tables;
mod timeline;

pub(crate) use self::run_file::{load_json, save_json};
pub use self::{
    plot::{Plot, Series},
    run_file::{FileError, Measured, RunFile},
    table::Table,
};

#[cfg(test)]
mod tests;
