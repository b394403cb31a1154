//! What a file says of its model, in words that both formats share.

use super::{Family, Rope, Windowed};
use crate::{
    config::{Activation, LayerAttention, ModelConfig, wrong},
    error::FormatError,
};

/// A model's shape before the family has its say.
pub struct Outline {
    pub family: &'static Family,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    /// As many as heads if none.
    pub kv_heads: Option<usize>,
    /// An equal part of the hidden size if none.
    pub head_dim: Option<usize>,
    pub intermediate: usize,
    pub vocab: usize,
    pub context_tokens: usize,
    pub rms_eps: f32,
    pub rope: Rope,
    /// Of layers with a window, if it is another.
    pub local_rope: Option<Rope>,
    pub windows: Windows,
    /// Whether each layer knows positions; the family's way if none.
    pub sighted: Option<Vec<bool>>,
    /// Scores are divided by its root; the size of a head if none.
    pub score_scalar: Option<f32>,
    pub attention_softcap: Option<f32>,
    pub logit_softcap: Option<f32>,
    pub activation: Activation,
    pub tied_embeddings: bool,
    pub eos_tokens: Vec<u32>,
    pub bos_token: Option<u32>,
}

/// Windows of attention.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// None: no layer has one.
    pub tokens: Option<usize>,
    pub layers: WindowedLayers,
}

/// Layers that have a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WindowedLayers {
    /// From this one on.
    From(usize),
    /// All but every n-th.
    AllBut(usize),
    Listed(Vec<bool>),
}

// === impl Outline ===

impl Outline {
    /// The configuration, checked.
    pub fn into_config(self) -> Result<ModelConfig, FormatError> {
        let head_dim = self.head_dim.unwrap_or(self.hidden.checked_div(self.heads).unwrap_or(0));
        let mut config = ModelConfig {
            architecture: self.family.hugging_face.to_owned(),
            layers: self.layers,
            hidden: self.hidden,
            heads: self.heads,
            kv_heads: self.kv_heads.unwrap_or(self.heads),
            head_dim,
            intermediate: self.intermediate,
            vocab: self.vocab,
            context_tokens: self.context_tokens,
            attention: Vec::new(),
            rotaries: Vec::new(),
            attention_scale: 1.0 / self.score_scalar.unwrap_or(head_dim as f32).sqrt(),
            attention_softcap: self.attention_softcap,
            logit_softcap: self.logit_softcap,
            qkv_bias: self.family.qkv_bias,
            qk_norm: self.family.qk_norm,
            norms: self.family.norms,
            activation: self.activation,
            embedding_scale: if self.family.scales_embedding { (self.hidden as f32).sqrt() } else { 1.0 },
            rms_eps: self.rms_eps,
            tied_embeddings: self.tied_embeddings,
            eos_tokens: self.eos_tokens.clone(),
            bos_token: self.bos_token,
        };
        // Nothing is made for each layer before their number is known to be sane.
        config.check_sizes()?;
        let ropes = [&self.rope].into_iter().chain(&self.local_rope);
        config.rotaries = ropes.map(|rope| rope.rotary(head_dim)).collect::<Result<_, _>>()?;
        config.attention = self.attention()?;
        config.check()?;
        Ok(config)
    }

    fn attention(&self) -> Result<Vec<LayerAttention>, FormatError> {
        let lists = [
            ("list of windowed layers", self.windows.layers.listed()),
            ("list of layers that know positions", self.sighted.as_deref()),
        ];
        for (what, list) in lists {
            if let Some(found) = list.map(<[bool]>::len).filter(|found| *found != self.layers) {
                return Err(wrong(what, &found, "as long as there are layers"));
            }
        }
        let local = usize::from(self.local_rope.is_some());
        let layer = |layer| {
            let window = self.windows.tokens.filter(|_| self.windows.layers.has(layer));
            let sighted = match (&self.sighted, self.family.blind_interval) {
                (Some(list), _) => list[layer],
                (None, Some(interval)) => !(layer + 1).is_multiple_of(interval),
                (None, None) => true,
            };
            LayerAttention { window, rotary: sighted.then_some(if window.is_some() { local } else { 0 }) }
        };
        Ok((0..self.layers).map(layer).collect())
    }
}

// === impl Windows ===

impl Windows {
    pub const NONE: Self = Self { tokens: None, layers: WindowedLayers::From(0) };

    /// A window in the layers of the family, where `late` is the first of [`Windowed::Late`].
    pub fn of(family: &Family, tokens: Option<usize>, late: usize) -> Self {
        let layers = match family.windowed {
            Windowed::None => return Self::NONE,
            Windowed::All => WindowedLayers::From(0),
            Windowed::Late => WindowedLayers::From(late),
            Windowed::AllBut(interval) => WindowedLayers::AllBut(interval),
        };
        Self { tokens, layers }
    }
}

// === impl WindowedLayers ===

impl WindowedLayers {
    fn listed(&self) -> Option<&[bool]> {
        match self {
            Self::Listed(list) => Some(list),
            Self::From(_) | Self::AllBut(_) => None,
        }
    }

    fn has(&self, layer: usize) -> bool {
        match self {
            Self::From(first) => layer >= *first,
            Self::AllBut(interval) => *interval == 0 || !(layer + 1).is_multiple_of(*interval),
            Self::Listed(list) => list[layer],
        }
    }
}
