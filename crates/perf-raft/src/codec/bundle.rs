//! Several frames in one, for a peer that gets many small ones.

use super::frame::FrameHeader;
use super::writer::Writer;
use super::{CodecError, encode};
use bytes::Bytes;
use perf_pool::BytesGuard;
use prost::encoding::{WireType, decode_key, decode_varint, encoded_len_varint};

/// Of the content, in the place of a body's.
const TAG: u32 = 15;
/// Of each frame within.
const FRAME_TAG: u32 = 1;

fn malformed(reason: &str) -> CodecError {
    CodecError::Malformed {
        reason: reason.to_owned(),
    }
}

/// Puts frames for node `to` into one, in a pooled buffer; [`for_each_frame`] takes them out again.
pub(crate) fn bundle<'a>(
    from: u64,
    to: u64,
    frames: impl Iterator<Item = &'a Bytes> + Clone,
) -> Result<Bytes, CodecError> {
    let header = FrameHeader {
        to,
        from,
        ..FrameHeader::default()
    };
    let lens = frames.clone().map(|frame| frame.len());
    let content = lens
        .map(|len| encode::len_delimited(FRAME_TAG.into(), len))
        .sum::<usize>();
    let len = header.encoded_len() + 1 + encoded_len_varint(content as u64) + content;
    let mut buffer = BytesGuard::try_new(len)?;
    let mut buf = buffer.buf_mut();
    let mut writer = Writer::new(&mut buf);
    header.put(&mut writer);
    writer.header(TAG.into(), content);
    for frame in frames {
        writer.header(FRAME_TAG.into(), frame.len());
        writer.raw(frame);
    }
    drop(writer);
    drop(buf);
    Ok(buffer.freeze())
}

/// Takes apart what a [`RaftHost`](crate::RaftHost) sends: small frames of several groups to the same peer may go as one. Gives each of them to `each`,
/// in order and without a copy; a frame that holds no others is given as it is. [`Inbox::deliver`](crate::Inbox::deliver) takes both. There is none in
/// one of several.
///
/// # Errors
/// [`CodecError`] if it is neither, after the frames that were whole.
pub fn for_each_frame(frame: Bytes, mut each: impl FnMut(Bytes)) -> Result<(), CodecError> {
    let mut rest: &[u8] = &frame;
    let (_, tag) = FrameHeader::read(&mut rest)?;
    if tag != TAG {
        each(frame);
        return Ok(());
    }
    if decode_varint(&mut rest)? != rest.len() as u64 {
        return Err(malformed("a bundle of another length than it says"));
    }
    while !rest.is_empty() {
        if decode_key(&mut rest)? != (FRAME_TAG, WireType::LengthDelimited) {
            return Err(malformed("a bundle of something else than frames"));
        }
        let len = usize::try_from(decode_varint(&mut rest)?).unwrap_or(usize::MAX);
        let start = frame.len() - rest.len();
        let Some((within, after)) = rest.split_at_checked(len) else {
            return Err(malformed("a frame that ends after its bundle"));
        };
        if FrameHeader::peek_with_tag(within)?.1 == TAG {
            return Err(malformed("a bundle in a bundle"));
        }
        each(frame.slice(start..start + len));
        rest = after;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupId;
    use crate::codec::{Body, ChunkAck, Frame};
    use proptest::prelude::*;

    fn frame(group: u64, received: u64) -> Bytes {
        let frame = Frame {
            header: FrameHeader {
                to: 2,
                from: 1,
                group: GroupId(group),
                ..FrameHeader::default()
            },
            body: Body::Ack(ChunkAck {
                transfer: 7,
                received,
                refused: false,
            }),
        };
        frame.encode_pooled().expect("it is small")
    }

    fn taken_apart(bytes: &[u8]) -> Result<Vec<Bytes>, CodecError> {
        let mut frames = Vec::new();
        for_each_frame(Bytes::copy_from_slice(bytes), |frame| frames.push(frame)).map(|()| frames)
    }

    #[test]
    fn a_frame_is_its_own_bundle_and_there_is_none_within_one() {
        let one = frame(3, 4);
        assert_eq!(taken_apart(&one), Ok(vec![one.clone()]));
        let outer = bundle(1, 2, [one.clone()].iter()).expect("it is small");
        assert_eq!(taken_apart(&outer), Ok(vec![one]));
        let nested = bundle(1, 2, [outer].iter()).expect("it is small");
        assert!(taken_apart(&nested).is_err());
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(groups in prop::collection::vec((any::<u64>(), any::<u64>()), 1..100)) {
            let frames: Vec<Bytes> = groups.iter().map(|(group, received)| frame(*group, *received)).collect();
            let bundled = bundle(1, 2, frames.iter()).expect("it is small");
            prop_assert_eq!(FrameHeader::peek(&bundled).map(|header| (header.from, header.to)), Ok((1, 2)));
            prop_assert_eq!(taken_apart(&bundled), Ok(frames.clone()));
            for end in 0..bundled.len() {
                prop_assert!(taken_apart(&bundled[..end]).is_err(), "cut at {}", end);
            }
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..60), flips in prop::collection::vec((0_usize..1000, any::<u8>()), 1..4)
        ) {
            drop(taken_apart(&bytes));
            let frames = [frame(1, 2), frame(300, 70_000)];
            let mut bundled = bundle(1, 2, frames.iter()).expect("it is small").to_vec();
            for (place, byte) in flips {
                let place = place % bundled.len();
                bundled[place] = byte;
            }
            drop(taken_apart(&bundled));
        }
    }
}
