//! PTX text to statements. Knows the grammar, no instruction.

use crate::error::Error;
use std::collections::{BTreeMap, HashMap};

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Arg {
    /// A register, symbol or label, with `!` before it or not.
    Name(String, bool),
    Int(i64),
    F32(u32),
    F64(u64),
    /// `[base+offset]`.
    Mem(Box<Arg>, i64),
    /// `{a, b, …}`
    Vector(Vec<Arg>),
    /// `(a, b, …)` of a call.
    Group(Vec<Arg>),
    /// `p|q`.
    Pair(Box<Arg>, Box<Arg>),
}

/// A variable declaration in any state space.
#[derive(Debug, Clone, Default)]
pub(crate) struct Var {
    pub space: String,
    pub name: String,
    pub align: u32,
    pub bytes: u64,
    pub init: Vec<u8>,
    pub external: bool,
}

/// One instruction as written.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub line: u32,
    /// Source file number and line of the last `.loc`.
    pub loc: (u32, u32),
    pub guard: Option<(String, bool)>,
    /// The opcode with its modifiers, and that split at the dots.
    pub op: String,
    pub args: Vec<Arg>,
}

#[derive(Debug, Clone)]
pub(crate) enum Stmt {
    Open,
    Close,
    /// Type, name, and how many numbered registers the name stands for.
    Reg(String, String, Option<u32>),
    Var(Var),
    Label(String),
    /// A list of labels that `brx.idx` chooses from.
    Targets(String, Vec<Arg>),
    Inst(Inst),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Function {
    pub name: String,
    pub entry: bool,
    pub line: u32,
    pub params: Vec<Var>,
    pub returns: Vec<Var>,
    pub max_threads: Option<u32>,
    pub body: Option<Vec<Stmt>>,
}

/// A whole translation unit.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    pub vars: Vec<Var>,
    pub functions: Vec<Function>,
    pub files: HashMap<u32, String>,
    /// File and line of the call, by the line of an instruction that was inlined.
    pub callers: BTreeMap<u32, (u32, u32)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Tok {
    Word(String),
    Int(i64),
    F32(u32),
    F64(u64),
    Str(String),
    Punct(char),
}

fn lex(text: &str) -> Result<Vec<(Tok, u32)>, Error> {
    let (b, mut i, mut line, mut out) = (text.as_bytes(), 0, 1u32, Vec::new());
    let at = |i: usize| b.get(i).copied().unwrap_or(0);
    while i < b.len() {
        let c = b[i];
        if c == b'\n' {
            line += 1;
            i += 1;
        } else if c.is_ascii_whitespace() {
            i += 1;
        } else if c == b'/' && at(i + 1) == b'/' {
            while i < b.len() && b[i] != b'\n' {
                i += 1;
            }
        } else if c == b'/' && at(i + 1) == b'*' {
            i += 2;
            while i < b.len() && !(b[i] == b'*' && at(i + 1) == b'/') {
                line += u32::from(b[i] == b'\n');
                i += 1;
            }
            i += 2;
        } else if c == b'"' {
            let s = i + 1;
            i = s;
            while i < b.len() && b[i] != b'"' {
                line += u32::from(b[i] == b'\n');
                i += 1;
            }
            out.push((Tok::Str(String::from_utf8_lossy(&b[s..i.min(b.len())]).into_owned()), line));
            i += 1;
        } else if c.is_ascii_digit() {
            let s = i;
            while at(i).is_ascii_alphanumeric() || at(i) == b'.' {
                i += 1;
            }
            let w = &text[s..i];
            out.push((number(w).ok_or_else(|| Error::ptx(line, "not a number", w))?, line));
        } else if c.is_ascii_alphabetic() || b"_$%.".contains(&c) {
            let s = i;
            loop {
                if at(i).is_ascii_alphanumeric() || (at(i) != 0 && b"_$%.".contains(&at(i))) {
                    i += 1;
                } else if at(i) == b':' && at(i + 1) == b':' {
                    i += 2;
                } else {
                    break;
                }
            }
            out.push((Tok::Word(text[s..i].to_owned()), line));
        } else if c.is_ascii() {
            out.push((Tok::Punct(c as char), line));
            i += 1;
        } else {
            return Err(Error::ptx(line, "not ASCII", String::from_utf8_lossy(&b[i..(i + 4).min(b.len())])));
        }
    }
    Ok(out)
}

fn number(w: &str) -> Option<Tok> {
    let l = w.to_ascii_lowercase();
    if let Some(h) = l.strip_prefix("0f") {
        return u32::from_str_radix(h, 16).ok().map(Tok::F32);
    }
    if let Some(h) = l.strip_prefix("0d") {
        return u64::from_str_radix(h, 16).ok().map(Tok::F64);
    }
    if l.contains('.') {
        return l.parse().ok().map(|x: f64| Tok::F64(x.to_bits()));
    }
    let d = l.trim_end_matches('u');
    let v = if let Some(h) = d.strip_prefix("0x") {
        u64::from_str_radix(h, 16)
    } else if let Some(h) = d.strip_prefix("0b") {
        u64::from_str_radix(h, 2)
    } else if d.len() > 1 && d.starts_with('0') {
        u64::from_str_radix(d, 8)
    } else {
        d.parse()
    };
    v.ok().map(|v| Tok::Int(v as i64))
}

/// Bytes of one value of a PTX type, by its name without the dot.
pub(crate) fn type_bytes(t: &str) -> Option<u64> {
    Some(match t {
        "pred" => 1,
        "f16x2" | "bf16x2" | "u16x2" | "s16x2" => 4,
        "bf16" => 2,
        "tf32" => 4,
        _ => t.get(1..)?.parse::<u64>().ok().filter(|_| "usbf".contains(&t[..1]))? / 8,
    })
}

struct Parser {
    toks: Vec<(Tok, u32)>,
    i: usize,
    loc: (u32, u32),
    /// Where the function that the last `.loc` is in was called from, the outermost of them.
    caller: Option<(u32, u32)>,
    callers: BTreeMap<u32, (u32, u32)>,
    depth: u32,
}

/// Reads a translation unit.
pub(crate) fn parse(text: &str) -> Result<Unit, Error> {
    let mut p =
        Parser { toks: lex(text)?, i: 0, loc: (0, 0), caller: None, callers: BTreeMap::new(), depth: 0 };
    let (mut unit, mut version) = (Unit::default(), false);
    while p.i < p.toks.len() {
        let (tok, line) = p.toks[p.i].clone();
        let Tok::Word(w) = tok else { return Err(p.err("expected a directive")) };
        match w.as_str() {
            ".version" => {
                p.i += 1;
                let Some((Tok::F64(v), _)) = p.toks.get(p.i) else { return Err(p.err("expected a version")) };
                let v = f64::from_bits(*v);
                if !(6.0..10.0).contains(&v) {
                    return Err(p.err("PTX ISA versions 6.0 to 9.x are read"));
                }
                (version, p.i) = (true, p.i + 1);
            }
            ".target" => {
                p.i += 1;
                let t = p.word()?;
                let n: u32 = t
                    .strip_prefix("sm_")
                    .and_then(|n| n.trim_end_matches(|c: char| c.is_alphabetic()).parse().ok())
                    .unwrap_or(0);
                if !(50..=89).contains(&n) {
                    return Err(Error::ptx(line, "targets sm_50 to sm_89 are executed", t));
                }
                while p.eat(',') {
                    p.word()?;
                }
            }
            ".address_size" => {
                p.i += 1;
                if p.int()? != 64 {
                    return Err(Error::ptx(line, "only 64-bit addresses", w));
                }
            }
            ".file" => {
                p.i += 1;
                let n = p.int()? as u32;
                if let Some((Tok::Str(s), _)) = p.toks.get(p.i).cloned() {
                    unit.files.insert(n, s);
                    p.i += 1;
                }
                while p.eat(',') {
                    p.int()?;
                }
            }
            ".section" => {
                while p.i < p.toks.len() && !p.is('}') {
                    p.i += 1;
                }
                p.i += 1;
            }
            _ => {
                if !version {
                    return Err(Error::ptx(line, ".version must come first", w));
                }
                p.top(&mut unit)?;
            }
        }
    }
    if !version {
        return Err(Error::ptx(1, "no .version", text.lines().next().unwrap_or_default()));
    }
    unit.callers = p.callers;
    Ok(unit)
}

impl Parser {
    fn err(&self, what: &str) -> Error {
        let line = self.toks.get(self.i).or(self.toks.last()).map_or(0, |t| t.1);
        let text = self.toks.get(self.i).map_or("end of text".to_owned(), |t| match &t.0 {
            Tok::Word(w) | Tok::Str(w) => w.clone(),
            Tok::Int(i) => i.to_string(),
            Tok::F32(x) => f32::from_bits(*x).to_string(),
            Tok::F64(x) => f64::from_bits(*x).to_string(),
            Tok::Punct(c) => c.to_string(),
        });
        Error::ptx(line, what, text)
    }

    fn is(&self, c: char) -> bool {
        self.toks.get(self.i).is_some_and(|t| t.0 == Tok::Punct(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let yes = self.is(c);
        self.i += usize::from(yes);
        yes
    }

    fn want(&mut self, c: char) -> Result<(), Error> {
        if self.eat(c) { Ok(()) } else { Err(self.err(&format!("expected `{c}`"))) }
    }

    fn peek(&self) -> Option<&str> {
        match self.toks.get(self.i) {
            Some((Tok::Word(w), _)) => Some(w),
            _ => None,
        }
    }

    fn word(&mut self) -> Result<String, Error> {
        let w = self.peek().map(str::to_owned).ok_or_else(|| self.err("expected a word"))?;
        self.i += 1;
        Ok(w)
    }

    fn int(&mut self) -> Result<i64, Error> {
        let minus = self.eat('-');
        match self.toks.get(self.i) {
            Some(&(Tok::Int(v), _)) => {
                self.i += 1;
                Ok(if minus { v.wrapping_neg() } else { v })
            }
            _ => Err(self.err("expected an integer")),
        }
    }

    fn top(&mut self, unit: &mut Unit) -> Result<(), Error> {
        let mut external = false;
        loop {
            match self.peek() {
                Some(".extern") => external = true,
                Some(".visible" | ".weak" | ".common") => {}
                Some(".entry" | ".func") => return self.function(unit),
                _ => break,
            }
            self.i += 1;
        }
        let mut var = self.var()?;
        var.external = external;
        self.want(';')?;
        unit.vars.push(var);
        Ok(())
    }

    fn function(&mut self, unit: &mut Unit) -> Result<(), Error> {
        let line = self.toks[self.i].1;
        let mut f = Function { entry: self.word()? == ".entry", line, ..Default::default() };
        if self.is('(') {
            f.returns = self.params()?;
        }
        f.name = self.word()?;
        if self.is('(') {
            f.params = self.params()?;
        }
        while let Some(w) = self.peek().map(str::to_owned) {
            self.i += 1;
            let mut dims = Vec::new();
            while let Some((Tok::Int(v), _)) = self.toks.get(self.i) {
                dims.push(*v as u32);
                self.i += 1;
                self.eat(',');
            }
            if w == ".maxntid" || w == ".reqntid" {
                f.max_threads = Some(dims.iter().fold(1, |n: u32, d| n.saturating_mul(*d)));
            }
        }
        if !self.eat(';') {
            self.want('{')?;
            f.body = Some(self.body()?);
        }
        unit.functions.push(f);
        Ok(())
    }

    fn params(&mut self) -> Result<Vec<Var>, Error> {
        self.want('(')?;
        let mut out = Vec::new();
        while !self.eat(')') {
            out.push(self.var()?);
            self.eat(',');
        }
        Ok(out)
    }

    fn var(&mut self) -> Result<Var, Error> {
        let mut v = Var { space: self.word()?, align: 0, ..Default::default() };
        if !matches!(v.space.as_str(), ".global" | ".const" | ".shared" | ".local" | ".param" | ".reg") {
            self.i -= 1;
            return Err(self.err("unknown directive"));
        }
        let (mut unit, mut lanes) = (0, 1);
        while let Some(w) = self.peek().filter(|w| w.starts_with('.')).map(str::to_owned) {
            self.i += 1;
            match &w[1..] {
                "align" => v.align = self.int()? as u32,
                "ptr" | "global" | "const" | "shared" | "local" => {}
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                t => unit = type_bytes(t).ok_or_else(|| self.err("unknown type"))?,
            }
        }
        unit *= lanes;
        v.name = self.word()?;
        let mut count = 1;
        while self.eat('[') {
            let n = if self.is(']') { 0 } else { self.int()?.max(0) as u64 };
            count = u64::saturating_mul(count, n);
            self.want(']')?;
        }
        v.bytes = unit.checked_mul(count).filter(|&b| b <= 1 << 40).ok_or_else(|| self.err("too large"))?;
        v.align = v.align.max(unit as u32).max(1);
        if !v.align.is_power_of_two() {
            return Err(self.err("alignment must be a power of two"));
        }
        if self.eat('=') {
            let mut depth = 0;
            loop {
                if self.eat('{') {
                    depth += 1;
                } else if self.eat('}') {
                    depth -= 1;
                } else if !self.eat(',') {
                    let bits = match self.arg()? {
                        Arg::Int(i) => i as u64,
                        Arg::F32(x) => x.into(),
                        Arg::F64(x) => x,
                        _ => return Err(self.err("an initialiser must be a number")),
                    };
                    v.init.extend_from_slice(&bits.to_le_bytes()[..(unit / lanes).min(8) as usize]);
                }
                if depth == 0 {
                    break;
                }
            }
            if v.init.len() as u64 > v.bytes {
                return Err(self.err("initialiser longer than its variable"));
            }
        }
        Ok(v)
    }

    fn body(&mut self) -> Result<Vec<Stmt>, Error> {
        let (mut out, mut depth) = (Vec::new(), 0);
        loop {
            if self.eat('{') {
                depth += 1;
                out.push(Stmt::Open);
                continue;
            }
            if self.eat('}') {
                if depth == 0 {
                    return Ok(out);
                }
                depth -= 1;
                out.push(Stmt::Close);
                continue;
            }
            if self.eat(';') {
                continue;
            }
            let line = self.toks.get(self.i).map_or(0, |t| t.1);
            let guard = if self.eat('@') {
                let not = self.eat('!');
                Some((self.word()?, not))
            } else {
                None
            };
            let w = self.word()?;
            match w.as_str() {
                ".loc" => {
                    let was = (self.loc, self.caller.take());
                    self.loc = (self.int()? as u32, self.int()? as u32);
                    self.int()?;
                    while self.eat(',') {
                        if self.word()? == "inlined_at" {
                            let at = (self.int()? as u32, self.int()? as u32);
                            self.int()?;
                            // The line before is the call's, and may be in an inlined function itself.
                            self.caller = Some(if was.0 == at { was.1.unwrap_or(at) } else { at });
                            continue;
                        }
                        // The function's name: a label, perhaps with an offset.
                        self.word()?;
                        if self.eat('+') {
                            self.int()?;
                        }
                    }
                }
                ".pragma" => {
                    while !self.eat(';') {
                        self.i += 1;
                        if self.i >= self.toks.len() {
                            return Err(self.err("unterminated .pragma"));
                        }
                    }
                }
                ".reg" => {
                    let ty = self.word()?;
                    loop {
                        let name = self.word()?;
                        let n = if self.eat('<') {
                            let n = self.int()?;
                            self.want('>')?;
                            Some(n.clamp(0, 1 << 20) as u32)
                        } else {
                            None
                        };
                        out.push(Stmt::Reg(ty[1..].to_owned(), name, n));
                        if !self.eat(',') {
                            break;
                        }
                    }
                    self.want(';')?;
                }
                ".shared" | ".local" | ".param" | ".global" | ".const" => {
                    self.i -= 1;
                    out.push(Stmt::Var(self.var()?));
                    self.want(';')?;
                }
                _ if self.is(':') => {
                    self.i += 1;
                    if self.peek() == Some(".branchtargets") {
                        self.i += 1;
                        out.push(Stmt::Targets(w, self.list(';')?));
                        continue;
                    }
                    out.push(Stmt::Label(w));
                }
                _ => {
                    let mut args = Vec::new();
                    while !self.eat(';') {
                        args.push(self.arg()?);
                        if !self.eat(',') {
                            self.want(';')?;
                            break;
                        }
                    }
                    if let Some(at) = self.caller {
                        self.callers.insert(line, at);
                    }
                    out.push(Stmt::Inst(Inst { line, loc: self.loc, guard, op: w, args }));
                }
            }
        }
    }

    fn list(&mut self, end: char) -> Result<Vec<Arg>, Error> {
        let mut out = Vec::new();
        while !self.eat(end) {
            out.push(self.arg()?);
            if !self.eat(',') {
                self.want(end)?;
                break;
            }
        }
        Ok(out)
    }

    fn arg(&mut self) -> Result<Arg, Error> {
        // Nothing that is meant nests deeper, and the stack ends somewhere.
        if self.depth == 16 {
            return Err(self.err("too deeply nested"));
        }
        self.depth += 1;
        let arg = self.nested();
        self.depth -= 1;
        arg
    }

    fn nested(&mut self) -> Result<Arg, Error> {
        if self.eat('{') {
            return Ok(Arg::Vector(self.list('}')?));
        }
        if self.eat('(') {
            return Ok(Arg::Group(self.list(')')?));
        }
        if self.eat('[') {
            let base = self.arg()?;
            let off = if self.eat('+') || self.is('-') { self.int()? } else { 0 };
            self.want(']')?;
            return Ok(Arg::Mem(Box::new(base), off));
        }
        let (not, minus) = (self.eat('!'), self.eat('-'));
        let tok = self.toks.get(self.i).map(|t| t.0.clone());
        self.i += 1;
        let first = match tok {
            Some(Tok::Word(w)) => Arg::Name(w, not),
            Some(Tok::Int(v)) => Arg::Int(if minus { v.wrapping_neg() } else { v }),
            Some(Tok::F32(x)) => Arg::F32(x ^ (u32::from(minus) << 31)),
            Some(Tok::F64(x)) => Arg::F64(x ^ (u64::from(minus) << 63)),
            _ => {
                self.i -= 1;
                return Err(self.err("expected an operand"));
            }
        };
        if self.eat('|') {
            return Ok(Arg::Pair(Box::new(first), Box::new(self.arg()?)));
        }
        Ok(first)
    }
}
