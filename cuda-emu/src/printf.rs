//! `printf` and `assert` on the device: the bytes of their arguments, formatted as C does.

use crate::decode_ops::LOCAL;
use crate::error::{Fault, Report};
use crate::exec::{Cta, Done, Warp};
use crate::ir::{Instr, NONE};

/// The longest string a kernel may print with `%s`, or use as a format.
const LONGEST: usize = 4096;

impl Cta<'_> {
    /// Bytes at a generic address of a thread, as many as are there up to `n`.
    fn bytes(&self, w: &Warp, lane: usize, addr: u64, n: usize) -> Vec<u8> {
        let each = self.run.kernel.local as usize;
        if addr >> 40 == LOCAL >> 40 {
            let at = (addr - LOCAL) as usize;
            let end = at.saturating_add(n).min(each);
            return if at < end { w.local[lane * each + at..lane * each + end].to_vec() } else { Vec::new() };
        }
        let view = self.run.views.iter().find(|v| addr >= v.block.start && addr < v.block.end());
        let Some(view) = view else { return Vec::new() };
        let n = n.min((view.block.end() - addr) as usize);
        let mut out = vec![0; n];
        // SAFETY: the range was cut to lie within the allocation.
        unsafe { view.block.ptr().add((addr - view.block.start) as usize).copy_to(out.as_mut_ptr(), n) };
        out
    }

    fn string(&self, w: &Warp, lane: usize, addr: u64) -> Vec<u8> {
        let mut s = self.bytes(w, lane, addr, LONGEST);
        s.truncate(s.iter().position(|b| *b == 0).unwrap_or(s.len()));
        s
    }

    /// A value in a call's parameter slot.
    fn slot(&self, w: &Warp, lane: usize, at: u32, n: usize) -> u64 {
        number(&self.bytes(w, lane, LOCAL + u64::from(at), n))
    }

    /// Calls `vprintf(format, arguments)` for each lane.
    pub(crate) fn printf(&mut self, w: &mut Warp, i: &Instr, m: u32) -> Done {
        let [format, args] = i.v[..] else { return Ok(()) };
        for l in crate::access::lanes(m) {
            let (format, args) = (self.slot(w, l, format, 8), self.slot(w, l, args, 8));
            let format = self.string(w, l, format);
            let text = self.format(w, l, &format, args);
            self.run.print(self.id, &text);
            if i.d != NONE {
                let at = l * self.run.kernel.local as usize + i.d as usize;
                let count = (text.len() as i32).to_le_bytes();
                if let Some(slot) = w.local.get_mut(at..at + 4) {
                    slot.copy_from_slice(&count);
                }
            }
        }
        Ok(())
    }

    fn format(&self, w: &Warp, l: usize, format: &[u8], args: u64) -> Vec<u8> {
        let (mut out, mut n, mut at) = (Vec::new(), 0, 0u64);
        while n < format.len() {
            let c = format[n];
            n += 1;
            if c != b'%' {
                out.push(c);
                continue;
            }
            let Some(spec) = Spec::read(format, &mut n) else {
                out.push(b'%');
                continue;
            };
            if spec.kind == b'%' {
                out.push(b'%');
                continue;
            }
            let size = if spec.long || b"sfFeEgGaAp".contains(&spec.kind) { 8 } else { 4 };
            at = at.next_multiple_of(size);
            let v = match args {
                0 => 0,
                _ => number(&self.bytes(w, l, args + at, size as usize)),
            };
            at += size;
            let body = match spec.kind {
                b's' => self.string(w, l, v),
                _ => spec.value(v),
            };
            spec.pad(body, &mut out);
        }
        out
    }

    /// Calls `__assertfail(expression, file, line, function, …)`.
    pub(crate) fn assert_fail(&mut self, w: &Warp, i: &Instr, m: u32) -> Box<Report> {
        let l = m.trailing_zeros() as usize;
        let text = |n: usize| match i.v.get(n) {
            Some(&at) => String::from_utf8_lossy(&self.string(w, l, self.slot(w, l, at, 8))).into_owned(),
            None => String::new(),
        };
        let line = i.v.get(2).map_or(0, |&at| self.slot(w, l, at, 4));
        let what = format!("assertion `{}` failed, {}:{line}, {}", text(0), text(1), text(3));
        self.fault(w, i, l, Fault::Trap, what, None)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// One conversion specification.
struct Spec {
    minus: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
    long: bool,
    kind: u8,
}

impl Spec {
    fn read(format: &[u8], n: &mut usize) -> Option<Self> {
        let rest = &format[*n..];
        let mut at = rest.iter().take_while(|c| b"-+ #0".contains(c)).count();
        let flag = |c: u8| rest[..at].contains(&c);
        let (minus, plus, space, zero, alternate) =
            (flag(b'-'), flag(b'+'), flag(b' '), flag(b'0'), flag(b'#'));
        let digits = |at: &mut usize| {
            let mut v = 0usize;
            while let Some(d) = rest.get(*at).filter(|c| c.is_ascii_digit()) {
                v = (v * 10 + usize::from(d - b'0')).min(LONGEST);
                *at += 1;
            }
            v
        };
        let width = digits(&mut at);
        let mut precision = None;
        if rest.get(at) == Some(&b'.') {
            at += 1;
            precision = Some(digits(&mut at));
        }
        let longs = rest[at..].iter().take_while(|c| b"lhjztL".contains(c)).count();
        let long = rest[at..at + longs].iter().any(|c| b"ljzt".contains(c));
        let kind = *rest.get(at + longs)?;
        *n += at + longs + 1;
        Some(Self { minus, plus, space, zero, alternate, width, precision, long, kind })
    }

    fn sign(&self, minus: bool) -> &'static str {
        match () {
            () if minus => "-",
            () if self.plus => "+",
            () if self.space => " ",
            () => "",
        }
    }

    fn value(&self, v: u64) -> Vec<u8> {
        let unsigned = if self.long { v } else { u64::from(v as u32) };
        let prefix = |p: &'static str| if self.alternate && unsigned != 0 { p } else { "" };
        match self.kind {
            b'd' | b'i' => {
                let v = if self.long { v as i64 } else { i64::from(v as i32) };
                format!("{}{:0>2$}", self.sign(v < 0), v.unsigned_abs(), self.precision.unwrap_or(1))
            }
            b'u' => format!("{unsigned:0>0$}", self.precision.unwrap_or(1)),
            b'x' => format!("{}{unsigned:0>1$x}", prefix("0x"), self.precision.unwrap_or(1)),
            b'X' => format!("{}{unsigned:0>1$X}", prefix("0X"), self.precision.unwrap_or(1)),
            b'o' => format!("{}{unsigned:0>1$o}", prefix("0"), self.precision.unwrap_or(1)),
            b'p' => format!("{v:#x}"),
            b'c' => return vec![v as u8],
            _ => self.float(f64::from_bits(v)),
        }
        .into_bytes()
    }

    fn float(&self, x: f64) -> String {
        let sign = self.sign(x.is_sign_negative());
        let (a, p) = (x.abs(), self.precision.unwrap_or(6));
        let body = match self.kind.to_ascii_lowercase() {
            _ if x.is_nan() => "nan".into(),
            _ if x.is_infinite() => "inf".into(),
            b'f' => format!("{a:.p$}"),
            b'e' => exponent(a, p),
            _ => general(a, p.max(1)),
        };
        let body = if self.kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        format!("{sign}{body}")
    }

    fn pad(&self, mut body: Vec<u8>, out: &mut Vec<u8>) {
        if self.kind == b's'
            && let Some(p) = self.precision
        {
            body.truncate(p);
        }
        let fill = self.width.saturating_sub(body.len());
        let number = body.last().is_some_and(u8::is_ascii_hexdigit) && !b"scp".contains(&self.kind);
        if self.minus {
            out.extend(body);
            out.extend(std::iter::repeat_n(b' ', fill));
        } else if self.zero && number && !(self.precision.is_some() && b"diuxXo".contains(&self.kind)) {
            let signed = usize::from(body.first().is_some_and(|c| b"+- ".contains(c)));
            out.extend(&body[..signed]);
            out.extend(std::iter::repeat_n(b'0', fill));
            out.extend(&body[signed..]);
        } else {
            out.extend(std::iter::repeat_n(b' ', fill));
            out.extend(body);
        }
    }
}

/// `%e`: a mantissa, and an exponent of at least two digits.
fn exponent(a: f64, p: usize) -> String {
    let s = format!("{a:.p$e}");
    let (m, e) = s.split_once('e').unwrap_or((&s, "0"));
    let e: i32 = e.parse().unwrap_or(0);
    format!("{m}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
}

/// `%g`: whichever of `%e` and `%f` is shorter, without trailing zeros.
fn general(a: f64, p: usize) -> String {
    let e = exponent(a, p - 1);
    let power: i32 = e.rsplit_once('e').and_then(|(_, x)| x.parse().ok()).unwrap_or(0);
    let trim = |s: &str| match s.contains('.') {
        true => s.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => s.to_owned(),
    };
    if power < -4 || power >= p as i32 {
        let (m, x) = e.split_once('e').unwrap_or((&e, "+00"));
        format!("{}e{x}", trim(m))
    } else {
        trim(&format!("{a:.0$}", (p as i32 - 1 - power).max(0) as usize))
    }
}
