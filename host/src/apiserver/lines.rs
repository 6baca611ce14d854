//! The lines of a running watch, each of them bounded.
//!
//! Invariants: `lines_come_whole_however_the_bytes_are_cut`, `a_line_without_end_is_refused_before_it_fills_the_memory`,
//! `a_stream_that_ends_within_a_line_was_cut_off`.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};

use super::{Error, TooLarge};

/// No line may be longer: the store of the API server takes objects of 1.5 MiB, of which JSON may make six times as
/// much, and servers of other kinds are given as much again.
const LINE_LIMIT: usize = 16 << 20;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Lines of a running watch.
pub struct Lines {
    body: BoxStream<'static, Result<Bytes, Cause>>,
    begun: BytesMut,
    /// So many bytes of `begun` have no line end.
    searched: usize,
}

impl Lines {
    /// The lines of `body`.
    pub(super) fn new(body: impl Stream<Item = Result<Bytes, Cause>> + Send + 'static) -> Self {
        Self { body: body.boxed(), begun: BytesMut::new(), searched: 0 }
    }

    /// The next line; `None` when the server has closed the stream. May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<String, Error>> {
        loop {
            if let Some(line) = self.whole() {
                return Some(line);
            }
            if self.begun.len() > LINE_LIMIT {
                return Some(Err(Error::Answer(TooLarge(LINE_LIMIT).into())));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.begun.extend_from_slice(&bytes),
                Some(Err(error)) => return Some(Err(Error::Connection(error))),
                None if self.begun.trim_ascii().is_empty() => return None,
                None => {
                    self.begun.clear();
                    return Some(Err(Error::Connection("the stream ended within a line".into())));
                }
            }
        }
    }

    /// The first whole line of what was received.
    fn whole(&mut self) -> Option<Result<String, Error>> {
        let Some(end) = self.begun[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.begun.len();
            return None;
        };
        let line = self.begun.split_to(self.searched + end + 1);
        self.searched = 0;
        Some(match std::str::from_utf8(&line) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => Err(Error::Answer(error.into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: Vec<Vec<u8>>) -> Lines {
        Lines::new(futures::stream::iter(chunks.into_iter().map(|chunk| Ok(chunk.into()))))
    }

    async fn all(mut lines: Lines) -> Vec<Result<String, String>> {
        let mut all = vec![];
        while let Some(line) = lines.next().await {
            let ends = line.is_err();
            all.push(line.map_err(|error| crate::causes::all(&error)));
            if ends {
                break;
            }
        }
        all
    }

    #[tokio::test]
    async fn lines_come_whole_however_the_bytes_are_cut() {
        let text = "{\"a\":1}\n\n{\"ä\":\"ö\"}\r\nlast\n";
        let expected: Vec<Result<String, String>> =
            ["{\"a\":1}", "", "{\"ä\":\"ö\"}", "last"].map(|line| Ok(line.to_owned())).into();
        for size in 1..=text.len() {
            let chunks = text.as_bytes().chunks(size).map(<[u8]>::to_vec).collect();
            assert_eq!(all(lines(chunks)).await, expected, "cut every {size} bytes");
        }
    }

    #[tokio::test]
    async fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let chunk = vec![b'x'; 1 << 20];
        let mut endless =
            Lines::new(futures::stream::repeat_with(move || Ok(chunk.clone().into())));
        let Some(Err(Error::Answer(cause))) = endless.next().await else { panic!("refused") };
        assert!(cause.is::<TooLarge>(), "{cause}");
        assert!(endless.begun.len() <= LINE_LIMIT + (1 << 20));
        let long = [vec![b'y'; LINE_LIMIT - 1], b"\n".to_vec()];
        assert_eq!(all(lines(long.into())).await[0].as_ref().unwrap().len(), LINE_LIMIT - 1);
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_line_was_cut_off() {
        let seen = all(lines(vec![b"one\n{\"type\":\"ADD".to_vec()])).await;
        assert_eq!(seen[0], Ok("one".to_owned()));
        assert!(seen[1].as_ref().unwrap_err().contains("within a line"), "{seen:?}");
        let seen = all(lines(vec![b"\xff\xfe\n".to_vec()])).await;
        assert!(seen[0].is_err(), "no text");
    }
}
