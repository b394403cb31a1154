//! Sides that differ in page size, shards and held heads: every byte lands
//! once, in its place, for every element type.

use baton_protocol::{HeadShare, KvDtype, KvShape};

use super::*;

/// One pair of nodes and what is handed from one to the other.
#[derive(Clone, Debug)]
struct Pair {
    shape: KvShape,
    pages: (u32, u32),
    from: HeadShare,
    to: HeadShare,
    have: u32,
    chunks: Vec<u32>,
    frame_bytes: usize,
    window_frames: u32,
}

fn pair() -> impl Strategy<Value = Pair> {
    let shape = (1..4u32, 1..17u32, 1..5u32, prop::sample::select(KvDtype::ALL.to_vec()));
    let sides = ((8..129u32, 0..4u32), (8..129u32, 0..4u32), any::<(u32, u32)>(), any::<bool>());
    let sent = (0..40u32, prop::collection::vec(1..60u32, 1..4), 1..4_000usize, 1..5u32);
    (shape, sides, sent).prop_filter_map("ranks that share unevenly", |(shape, sides, sent)| {
        let (layers, kv_heads, head_dim, dtype) = shape;
        let ((from_pages, from_tp), (to_pages, to_tp), cut, part) = sides;
        let start = if part { cut.0 % kv_heads } else { 0 };
        let end = if part { start + 1 + cut.1 % (kv_heads - start) } else { kv_heads };
        let (have, chunks, frame_bytes, window_frames) = sent;
        let pair = Pair {
            shape: KvShape { layers, kv_heads, head_dim, dtype, page_tokens: 0 },
            pages: (from_pages, to_pages),
            from: HeadShare { held: 0..kv_heads, tp: 1 << from_tp },
            to: HeadShare { held: start..end, tp: 1 << to_tp },
            have: have.min(chunks.iter().sum::<u32>() - 1),
            chunks,
            frame_bytes,
            window_frames,
        };
        (pair.from.check(kv_heads).is_ok() && pair.to.check(kv_heads).is_ok()).then_some(pair)
    })
}

impl Pair {
    /// Runs a handoff to its end: bytes landed.
    fn hand_off(&self) -> Option<u64> {
        let tokens: u32 = self.chunks.iter().sum();
        let side = |page_tokens| KvShape { page_tokens, ..self.shape.clone() };
        let source = Memory::computed_by(&side(self.pages.0), self.from.clone(), 0..tokens);
        let sink = Memory::shared(&side(self.pages.1), self.to.clone(), self.have..tokens);
        let cut = Cut {
            shape: side(self.pages.0),
            heads: self.from.runs_to(&self.to).unwrap(),
            frame_bytes: self.frame_bytes,
        };
        let sending = SenderTerms { id: handoff_id(0), cut, max_repeats: 0, tokens: self.have..tokens };
        let receiving = ReceiverTerms {
            shape: side(self.pages.1),
            heads: self.to.held.clone(),
            tokens: self.have..tokens,
            wants_first: false,
            window_frames: self.window_frames,
            ..receiver_terms()
        };
        let mut sender = Sender::new(sending);
        let mut receiver = Receiver::new(receiving, Box::new(Slot(Some(sink.clone()))));
        let mut events: VecDeque<SenderEvent> = self.report(&source).map(SenderEvent::Progress).collect();
        let (mut landed, now) = (None, Instant::now());
        while let Some(event) = events.pop_front() {
            for action in sender.on(event) {
                let done = match action {
                    SenderAction::Send(message) => receiver.on(ReceiverEvent::Control(message), now),
                    SenderAction::Frame(header, source) => {
                        let (done, sent) = carry(&mut receiver, header, &*source, now);
                        events.push_front(sent);
                        done
                    }
                    _ => continue,
                };
                for action in done {
                    match action {
                        // Credit comes back before more is computed, or after.
                        ReceiverAction::Send(message) if self.have.is_multiple_of(2) => {
                            events.push_back(as_event(&message));
                        }
                        ReceiverAction::Send(message) => events.push_front(as_event(&message)),
                        ReceiverAction::Emit(HandoffEvent::Ready { stats, .. }) => landed = Some(stats.bytes),
                        _ => {}
                    }
                }
            }
        }
        assert!(sink.holds(self.have..tokens), "a byte is not in its place");
        landed
    }

    fn report(&self, source: &Arc<Memory>) -> impl Iterator<Item = Progress> + use<> {
        let started = Progress::Started { cached_tokens: 0, queue: Duration::ZERO, source: source.clone() };
        let (mut token, layers) = (0, self.shape.layers);
        let chunks = self.chunks.clone().into_iter().map(move |tokens| {
            token += tokens;
            Progress::Computed { layers: 0..layers, tokens: token - tokens..token }
        });
        std::iter::once(started).chain(chunks).chain([Progress::Done])
    }
}

/// Takes a frame from pages to pages.
fn carry(
    receiver: &mut Receiver,
    header: FrameHeader,
    source: &dyn KvSource,
    now: Instant,
) -> (Vec<ReceiverAction>, SenderEvent) {
    let decoded = FrameHeader::decode(&header.encode());
    assert_eq!(decoded, Ok(header.clone()));
    let mut actions = receiver.on(ReceiverEvent::Arriving(&header), now);
    let sink = actions.iter().find_map(|action| match action {
        ReceiverAction::Land(sink) => Some(sink.clone()),
        _ => None,
    });
    let sink = sink.expect("an honest frame lands");
    let mut crc = Checksum::Crc32c.begin();
    let copy = &mut |to: &mut [std::io::IoSliceMut<'_>]| {
        crate::transport::check_size(to, &header)?;
        source.read(&header.span, &mut |from| crc.copy(from, to))
    };
    sink.write(&header.span, copy).unwrap();
    let crc = crc.value();
    assert_eq!(crc, Checksum::Crc32c.of(source, &header.span).unwrap());
    let sent = SenderEvent::Sent { seq: header.seq, crc };
    let received = Received { header, crc, intact: true, duration: Duration::ZERO };
    actions.extend(receiver.on(ReceiverEvent::Arrived(&received), now));
    (actions, sent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_byte_lands_once_in_its_place(pair in pair()) {
        let tokens = pair.chunks.iter().sum::<u32>();
        let span = baton_protocol::KvSpan {
            layers: 0..pair.shape.layers,
            tokens: pair.have..tokens,
            heads: pair.to.held.clone(),
        };
        prop_assert_eq!(pair.hand_off(), Some(pair.shape.span_bytes(&span) as u64));
    }
}
