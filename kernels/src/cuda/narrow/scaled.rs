//! Products of few rows of e4m3.

use cudarc::driver::DevicePtr;

use super::{Form, Inputs, OP};
use crate::cuda::{
    Gpu, Half, Scaled, Write,
    error::{GpuError, exactly, multiple},
    gate::Activation,
    tensor_map::Element,
};

/// As [`Narrow`](super::Narrow), with weights and rows in e4m3 with scales.
#[derive(Debug)]
pub struct NarrowScaled<'a> {
    weights: Scaled<'a>,
}

// === impl NarrowScaled ===

impl<'a> NarrowScaled<'a> {
    /// The product with `weights`.
    ///
    /// # Errors
    /// The weights again, where the card or their shape is not made for it.
    pub fn new(gpu: &Gpu, weights: Scaled<'a>) -> Result<Self, Scaled<'a>> {
        let fits = weights.width.is_multiple_of(16) && weights.rows().is_multiple_of(8);
        if gpu.capability() == (9, 0) && fits { Ok(Self { weights }) } else { Err(weights) }
    }

    /// `out[m][n]` = sum over k of `x[m][k] * weights[n][k]`
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn run(&self, gpu: &Gpu, x: &Scaled<'_>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, Form::Store)
    }

    /// As [`Self::run`], added to what `out` holds.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn add(&self, gpu: &Gpu, x: &Scaled<'_>, out: &mut impl Write<Half>) -> Result<(), GpuError> {
        self.launch(gpu, x, out, Form::Add)
    }

    /// `out[m][n] = activation(y[m][n]) * y[m][width + n]` of the product `y`, which is
    /// `2 * width` wide and is never written.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn gated(
        &self,
        gpu: &Gpu,
        activation: Activation,
        x: &Scaled<'_>,
        out: &mut impl Write<Half>,
    ) -> Result<(), GpuError> {
        multiple(OP, "outputs", self.weights.rows(), 16)?;
        self.launch(gpu, x, out, Form::Gate(activation))
    }

    fn launch(
        &self,
        gpu: &Gpu,
        x: &Scaled<'_>,
        out: &mut impl Write<Half>,
        form: Form,
    ) -> Result<(), GpuError> {
        let (w, outputs, inputs, rows) = (&self.weights, self.weights.rows(), self.weights.width, x.rows());
        exactly(OP, "weights", w.data.len(), outputs * inputs)?;
        exactly(OP, "elements in", x.data.len(), rows * inputs)?;
        if rows == 0 {
            return exactly(OP, "elements out", out.len(), 0);
        }
        let stream = gpu.stream();
        let ((w, _w), (w_scales, _w_scales)) = (w.data.device_ptr(stream), w.scales.device_ptr(stream));
        let ((x, _x), (x_scales, _x_scales)) = (x.data.device_ptr(stream), x.scales.device_ptr(stream));
        let scales = [w_scales, x_scales];
        Inputs { element: Element::E4m3, w, x, scales, outputs, inputs, rows }.multiply(gpu, out, form)
    }
}
