//! Decoder of chunked bodies (RFC 9112 §7.1), fed as bytes arrive.
//!
//! The one idea: line by line over whatever is there, taking nothing that is not
//! complete, so that the caller's buffer is the only memory. It is strict on
//! purpose: a bare LF, an empty size, a sign or more than 16 digits is an error,
//! since this end exists to notice what a proxy did to the bytes.
//! Extensions are accepted and dropped; trailers are kept as raw bytes.

const LINE_BYTES_MAX: usize = 4096;
const TRAILER_BYTES_MAX: usize = 65_536;

/// What is wrong with a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadChunk {
    /// The size line is not hexadecimal digits with an optional extension.
    Size,
    /// A line, or the data of a chunk, does not end in CRLF.
    LineEnd,
    /// A line or the trailers exceed their limit.
    TooLong,
}

/// Where the decoder stands.
///
/// ```text
///  Size -> Data -> DataEnd -> Size -> … -> Size(0) -> Trailers -> Done
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

/// Decoder of one chunked body.
#[derive(Debug)]
pub(crate) struct Chunks {
    state: State,
    trailers: Vec<u8>,
}

impl Chunks {
    /// A decoder before the first size line.
    pub(crate) fn new() -> Chunks {
        Chunks { state: State::Size, trailers: Vec::new() }
    }

    /// Whether the last chunk and the trailers have been read.
    pub(crate) fn done(&self) -> bool {
        self.state == State::Done
    }

    /// The trailer section without its final empty line, as it came.
    #[cfg(any(feature = "mock", test))]
    pub(crate) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Takes what is complete from `input`, appends data to `out`, and tells how
    /// many bytes it took; the rest must come again with more behind it.
    pub(crate) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BadChunk> {
        let mut rest = input;
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = take_line(&mut rest, LINE_BYTES_MAX)? else { break };
                    self.state = match parse_size(line)? {
                        0 => State::Trailers,
                        size => State::Data(size),
                    };
                }
                State::Data(left) => {
                    if rest.is_empty() {
                        break;
                    }
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let (data, after) = rest.split_at(take);
                    out.extend_from_slice(data);
                    rest = after;
                    self.state = match left - take as u64 {
                        0 => State::DataEnd,
                        left => State::Data(left),
                    };
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', after @ ..] => {
                        rest = after;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(BadChunk::LineEnd),
                },
                State::Trailers => {
                    let Some(line) = take_line(&mut rest, LINE_BYTES_MAX)? else { break };
                    if line.is_empty() {
                        self.state = State::Done;
                        continue;
                    }
                    self.trailers.extend_from_slice(line);
                    self.trailers.extend_from_slice(b"\r\n");
                    if self.trailers.len() > TRAILER_BYTES_MAX {
                        return Err(BadChunk::TooLong);
                    }
                }
                State::Done => break,
            }
        }
        Ok(input.len() - rest.len())
    }
}

/// Takes one line without its CRLF, or nothing while it is incomplete.
fn take_line<'a>(rest: &mut &'a [u8], limit: usize) -> Result<Option<&'a [u8]>, BadChunk> {
    let all = *rest;
    let Some(at) = memchr::memchr(b'\n', all) else {
        return if all.len() > limit { Err(BadChunk::TooLong) } else { Ok(None) };
    };
    if at > limit {
        return Err(BadChunk::TooLong);
    }
    let (line, after) = all.split_at(at);
    let Some(line) = line.strip_suffix(b"\r") else { return Err(BadChunk::LineEnd) };
    *rest = after.strip_prefix(b"\n").unwrap_or(after);
    Ok(Some(line))
}

fn parse_size(line: &[u8]) -> Result<u64, BadChunk> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    let extension_ok = extension.is_empty() || extension.trim_ascii_start().starts_with(b";");
    if !(1..=16).contains(&digits) || !extension_ok {
        return Err(BadChunk::Size);
    }
    let size = std::str::from_utf8(size).map_err(|_| BadChunk::Size)?;
    u64::from_str_radix(size, 16).map_err(|_| BadChunk::Size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, Vec<u8>), BadChunk> {
        let (mut chunks, mut out, mut held) = (Chunks::new(), Vec::new(), Vec::new());
        for piece in pieces {
            held.extend_from_slice(piece);
            let taken = chunks.push(&held, &mut out)?;
            held.drain(..taken);
        }
        Ok((out, chunks.done(), chunks.trailers().to_vec()))
    }

    #[test]
    fn any_split_gives_the_same_body() {
        let wire = b"5;a=b\r\nhello\r\nA\r\n, the worl\r\n1\r\nd\r\n0\r\nx: y\r\n\r\n";
        for cut in 0..=wire.len() {
            let (head, tail) = wire.split_at(cut);
            let got = decode(&[head, tail]).unwrap();
            assert_eq!(got, (b"hello, the world".to_vec(), true, b"x: y\r\n".to_vec()));
        }
    }

    #[test]
    fn stops_at_the_end_of_the_body() {
        let (mut chunks, mut out) = (Chunks::new(), Vec::new());
        assert_eq!(chunks.push(b"0\r\n\r\nHTTP/1.1", &mut out), Ok(5));
        assert!(chunks.done());
    }

    #[test]
    fn refuses_what_is_not_exact() {
        for (wire, fault) in [
            (&b"zz\r\n"[..], BadChunk::Size),
            (b"\r\n", BadChunk::Size),
            (b"+5\r\nhello", BadChunk::Size),
            (b"5 x\r\nhello", BadChunk::Size),
            (b"11112222333344445\r\n", BadChunk::Size),
            (b"5\nhello", BadChunk::LineEnd),
            (b"5\r\nhelloX\r\n", BadChunk::LineEnd),
        ] {
            assert_eq!(decode(&[wire]).unwrap_err(), fault, "{wire:?}");
        }
        assert_eq!(decode(&[&[b'1'; 5000]]).unwrap_err(), BadChunk::TooLong);
    }
}
