//! How the API's messages are written to and read from a gRPC stream.
//!
//! Writing is tonic's. Reading differs in one thing: a message is taken out of the stream's buffer as a whole and
//! decoded as a slice. tonic's decoder goes through a cursor on that buffer, which does its bookkeeping anew for
//! every tag, number and component of a vector.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

/// Writes messages of one kind and reads those of another.
#[derive(Debug)]
pub struct MessageCodec<T, U>(PhantomData<(T, U)>);

/// Reads messages.
#[derive(Debug)]
pub struct MessageDecoder<U>(PhantomData<U>);

impl<T, U> Default for MessageCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for MessageCodec<T, U>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = MessageDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(PhantomData)
    }
}

impl<U: Message + Default> Decoder for MessageDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // No copy: it is split off.
        let message = buffer.copy_to_bytes(buffer.remaining());
        // What gRPC says of a message that does not read.
        let decoded = U::decode(message.as_ref());
        decoded
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        collections::VecDeque,
        convert::Infallible,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use bytes::Bytes;
    use http_body::{Body, Frame};
    use prost::Message as _;
    use tonic::{
        Code, Status, Streaming,
        codec::{Codec as _, EncodeBody},
    };

    use super::MessageCodec;
    use crate::v1::{BucketId, Hit};

    /// A request's body, in the pieces that it comes in.
    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&[0], &length.to_be_bytes()[..], message].concat()
    }

    fn read<U: prost::Message + Default + 'static>(
        bytes: &[u8],
        piece: usize,
    ) -> Vec<Result<U, Status>> {
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let decoder = MessageCodec::<(), U>::default().decoder();
        let mut stream = Streaming::new_request(decoder, Pieces(pieces), None, None);
        let mut context = Context::from_waker(Waker::noop());
        let mut read = Vec::new();
        loop {
            let next = pin!(stream.message()).poll(&mut context);
            match next {
                Poll::Ready(Ok(Some(message))) => read.push(Ok(message)),
                Poll::Ready(Ok(None)) => return read,
                Poll::Ready(Err(status)) => {
                    read.push(Err(status));
                    return read;
                }
                Poll::Pending => {}
            }
        }
    }

    fn ids() -> Vec<BucketId> {
        let id = |number: u8| BucketId {
            id: format!("point-{number}"),
            row_hash: vec![number; usize::from(number)].into(),
            ..BucketId::default()
        };
        // Those at the ends are of no bytes at all.
        let none = [BucketId::default()];
        let some = (0..20).map(id);
        none.iter()
            .cloned()
            .chain(some)
            .chain(none.clone())
            .collect()
    }

    #[test]
    fn messages_are_read_however_the_stream_is_cut() {
        let bytes: Vec<u8> = (ids().iter())
            .flat_map(|id| framed(&id.encode_to_vec()))
            .collect();
        for piece in [1, 3, 7, 64, bytes.len()] {
            let read = read::<BucketId>(&bytes, piece);
            let read: Vec<BucketId> = read.into_iter().map(Result::unwrap).collect();
            assert_eq!(read, ids(), "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let source = tonic::codegen::tokio_stream::iter(ids().into_iter().map(Ok));
        let encoder = MessageCodec::<BucketId, ()>::default().encoder();
        let mut body = pin!(EncodeBody::new_client(encoder, source, None, None));
        let mut context = Context::from_waker(Waker::noop());
        let mut bytes = Vec::new();
        while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut context) {
            bytes.extend(frame.unwrap().into_data().unwrap());
        }
        let read = read::<BucketId>(&bytes, bytes.len());
        let read: Vec<BucketId> = read.into_iter().map(Result::unwrap).collect();
        assert_eq!(read, ids());
    }

    #[test]
    fn a_message_that_does_not_read_takes_nothing_of_the_next() {
        // A string that is longer than its message, and as long as that and the whole next one.
        let bytes = [framed(&[0x0a, 0x20, b'a']), framed(&[b'a'; 26])].concat();
        let read = read::<Hit>(&bytes, bytes.len());
        let [Err(status)] = &read[..] else {
            panic!("it was read: {read:?}");
        };
        assert_eq!(status.code(), Code::Internal);
    }
}
