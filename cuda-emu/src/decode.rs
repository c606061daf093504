//! Statements to instructions: names become register rows, calls are inlined, labels become indices.

use crate::alu::{Alu, a1, a2};
use crate::decode_extra;
use crate::error::Error;
use crate::ir::{Class, Instr, Kernel, NONE, Op, Param, Preset, Special};
use crate::parse::{Arg, Function, Inst, Stmt, Unit, Var, type_bytes};
use crate::select;
use std::collections::HashMap;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sym {
    Reg(u32, bool),
    Pred(u32),
    Shared(u32),
    Local(u32),
    Param(u32),
    Global(usize),
    Label(usize),
}

/// Decodes one kernel.
pub(crate) struct Decoder<'a> {
    unit: &'a Unit,
    scopes: Vec<HashMap<String, Sym>>,
    /// The first scope the function being inlined may see, and how deep in calls it is.
    floor: usize,
    depth: u32,
    /// Where `ret` of the function being inlined goes.
    end: Option<usize>,
    shared: HashMap<(String, String), u32>,
    function: String,
    code: Vec<Instr>,
    labels: Vec<Option<u32>>,
    targets: HashMap<String, &'a [Arg]>,
    words: u32,
    spare: (u32, u32),
    presets: HashMap<Preset, u32>,
    local: u32,
    /// First and last instruction that names a register, and its words per thread.
    spans: HashMap<u32, (usize, usize, u32)>,
    guard: (u32, bool),
    /// Every named register's first word and its words.
    named: HashMap<u32, u32>,
    /// The predicate that is the carry flag.
    carry: Option<u32>,
    pub line: u32,
    loc: (u32, u32),
}

/// More bytes of shared, local or parameter memory than any device has; whoever declares more is refused.
const MOST_BYTES: u32 = 1 << 20;
/// The most words a warp's registers may take: a hundred times what a compiler declares.
const MOST_WORDS: u32 = 1 << 24;

/// Where every shared variable lies, where they end, and where the memory given at launch begins.
fn shared_offsets(unit: &Unit, entry: &str) -> (HashMap<(String, String), u32>, u32, u32) {
    let (mut map, mut at) = (HashMap::new(), 0u32);
    let mut place = |f: &str, v: &Var| {
        at = at.checked_next_multiple_of(v.align).unwrap_or(MOST_BYTES).min(MOST_BYTES);
        map.insert((f.to_owned(), v.name.clone()), at);
        at += v.bytes.min(MOST_BYTES.into()) as u32;
    };
    for v in unit.vars.iter().filter(|v| v.space == ".shared" && v.bytes > 0) {
        place("", v);
    }
    for f in unit.functions.iter().filter(|f| !f.entry || f.name == entry) {
        for s in f.body.iter().flatten() {
            if let Stmt::Var(v) = s
                && v.space == ".shared"
            {
                place(&f.name, v);
            }
        }
    }
    let open = || unit.vars.iter().filter(|v| v.space == ".shared" && v.bytes == 0);
    let align = open().map(|v| v.align).max().unwrap_or(1).max(16);
    let dynamic = at.checked_next_multiple_of(align).unwrap_or(u32::MAX);
    for v in open() {
        map.insert((String::new(), v.name.clone()), dynamic);
    }
    (map, at, dynamic)
}

/// Decodes the entry `f`.
pub(crate) fn kernel(unit: &Unit, f: &Function) -> Result<Kernel, Error> {
    let (shared, shared_bytes, dynamic_at) = shared_offsets(unit, &f.name);
    let mut d = Decoder {
        unit,
        scopes: vec![HashMap::new()],
        floor: 0,
        depth: 0,
        end: None,
        shared,
        function: f.name.clone(),
        code: Vec::new(),
        labels: Vec::new(),
        targets: HashMap::new(),
        words: 0,
        spare: (0, 0),
        presets: HashMap::new(),
        local: 0,
        spans: HashMap::new(),
        guard: (NONE, false),
        named: HashMap::new(),
        carry: None,
        line: f.line,
        loc: (0, 0),
    };
    let (mut params, mut at) = (Vec::new(), 0u32);
    for p in &f.params {
        at = at.checked_next_multiple_of(p.align).unwrap_or(MOST_BYTES);
        if u64::from(at) + p.bytes > 32764 {
            return d.fail("more than 32764 bytes of parameters", &p.name);
        }
        d.scopes[0].insert(p.name.clone(), Sym::Param(at));
        params.push(Param { offset: at as usize, size: p.bytes as usize, align: p.align as usize });
        at += p.bytes as u32;
    }
    d.body(f.body.as_deref().unwrap_or_default())?;
    d.emit(Op::Exit, Class::Control);
    for i in &mut d.code {
        if matches!(i.op, Op::Bra) {
            i.d = d.labels[i.d as usize].expect("every label seen in a scope is placed by that scope");
        }
    }
    if d.words > MOST_WORDS {
        return d.fail("too many registers", &f.name);
    }
    let registers = d.pressure();
    let unwritten = crate::live::unwritten(&d.code, &d.named);
    Ok(Kernel {
        name: f.name.clone(),
        code: d.code,
        params,
        param_bytes: at as usize,
        shared: shared_bytes,
        dynamic_at,
        local: d.local.next_multiple_of(16),
        max_threads: f.max_threads.unwrap_or(1024).min(1024),
        words: d.words as usize,
        registers,
        unwritten,
        presets: d.presets,
    })
}

impl<'a> Decoder<'a> {
    pub fn fail<T>(&self, what: impl Into<String>, text: impl Into<String>) -> Result<T, Error> {
        Err(Error::ptx(self.line, what, text))
    }

    fn pressure(&self) -> u32 {
        let mut change = vec![0i64; self.code.len() + 2];
        for &(first, last, words) in self.spans.values() {
            change[first] += i64::from(words);
            change[last + 1] -= i64::from(words);
        }
        let mut now = 0;
        let most = change
            .iter()
            .map(|c| {
                now += c;
                now
            })
            .max()
            .unwrap_or(0);
        (most as u32 + 8).min(255)
    }

    pub fn row(&mut self, wide: bool) -> u32 {
        let at = self.words;
        self.words = self.words.saturating_add(if wide { 64 } else { 32 });
        at
    }

    pub fn pred_word(&mut self) -> u32 {
        if self.spare.0 == self.spare.1 {
            let at = self.row(false);
            self.spare = (at, at + 32);
        }
        self.spare.0 += 1;
        self.spare.0 - 1
    }

    pub fn carry_flag(&mut self) -> u32 {
        match self.carry {
            Some(p) => p,
            None => {
                let p = self.pred_word();
                self.named.insert(p, 1);
                *self.carry.insert(p)
            }
        }
    }

    pub fn preset(&mut self, p: Preset) -> u32 {
        if let Some(&w) = self.presets.get(&p) {
            return w;
        }
        let w = match p {
            Preset::Word(_) => self.pred_word(),
            Preset::Row64(_) | Preset::Global(..) => self.row(true),
            _ => self.row(false),
        };
        self.presets.insert(p, w);
        w
    }

    fn body(&mut self, stmts: &'a [Stmt]) -> Result<(), Error> {
        self.open(stmts);
        for (n, s) in stmts.iter().enumerate() {
            match s {
                Stmt::Open => self.open(&stmts[n + 1..]),
                Stmt::Close => {
                    self.scopes.pop();
                }
                Stmt::Reg(ty, name, count) => self.registers(ty, name, *count)?,
                Stmt::Var(v) => self.variable(v)?,
                Stmt::Label(l) => {
                    if let Some(Sym::Label(n)) = self.find(l) {
                        self.labels[n] = Some(self.code.len() as u32);
                    }
                }
                Stmt::Targets(name, list) => {
                    self.targets.insert(name.clone(), list);
                }
                Stmt::Inst(i) => {
                    (self.line, self.loc) = (i.line, i.loc);
                    self.guard = match &i.guard {
                        None => (NONE, false),
                        Some((p, not)) => (self.pred(&Arg::Name(p.clone(), false))?, *not),
                    };
                    self.inst(i)?;
                    self.guard = (NONE, false);
                }
            }
        }
        self.scopes.pop();
        Ok(())
    }

    /// Enters a scope, whose labels may be named before they come.
    fn open(&mut self, rest: &[Stmt]) {
        let (mut names, mut depth) = (HashMap::new(), 0);
        for s in rest {
            match s {
                Stmt::Open => depth += 1,
                Stmt::Close if depth == 0 => break,
                Stmt::Close => depth -= 1,
                Stmt::Label(l) if depth == 0 => {
                    names.insert(l.clone(), Sym::Label(self.labels.len()));
                    self.labels.push(None);
                }
                _ => {}
            }
        }
        self.scopes.push(names);
    }

    fn define(&mut self, name: String, s: Sym) {
        self.scopes.last_mut().expect("a body has a scope").insert(name, s);
    }

    fn registers(&mut self, ty: &str, name: &str, count: Option<u32>) -> Result<(), Error> {
        let wide = type_bytes(ty).filter(|b| *b <= 8);
        let Some(bytes) = wide else { return self.fail("registers of this type are not supported", ty) };
        let names: Vec<String> = match count {
            None => vec![name.to_owned()],
            Some(n) => (0..n).map(|i| format!("{name}{i}")).collect(),
        };
        for n in names {
            let s = match ty {
                "pred" => Sym::Pred(self.pred_word()),
                _ => Sym::Reg(self.row(bytes == 8), bytes == 8),
            };
            let (word, words) = match s {
                Sym::Reg(w, wide) => (w, 32 << u32::from(wide)),
                Sym::Pred(w) => (w, 1),
                _ => unreachable!("made above"),
            };
            self.named.insert(word, words);
            self.define(n, s);
            if self.words > MOST_WORDS {
                return self.fail("too many registers", name);
            }
        }
        Ok(())
    }

    pub fn local_bytes(&mut self, bytes: u64, align: u32) -> Result<u32, Error> {
        let at = self.local.checked_next_multiple_of(align).unwrap_or(MOST_BYTES);
        if u64::from(at) + bytes > (MOST_BYTES / 2).into() {
            return self.fail("more than 512 KB of local memory a thread", bytes.to_string());
        }
        self.local = at + bytes as u32;
        Ok(at)
    }

    fn variable(&mut self, v: &Var) -> Result<(), Error> {
        let s = match v.space.as_str() {
            ".shared" => Sym::Shared(self.shared[&(self.function.clone(), v.name.clone())]),
            ".local" | ".param" => Sym::Local(self.local_bytes(v.bytes, v.align)?),
            _ => return self.fail("a variable of this space inside a function", v.space.as_str()),
        };
        self.define(v.name.clone(), s);
        Ok(())
    }

    fn find(&self, name: &str) -> Option<Sym> {
        let near = self.scopes[self.floor..].iter().rev().find_map(|s| s.get(name)).copied();
        near.or_else(|| {
            let n = self.unit.vars.iter().position(|v| v.name == name)?;
            match self.unit.vars[n].space.as_str() {
                ".shared" => self.shared.get(&(String::new(), name.to_owned())).map(|&o| Sym::Shared(o)),
                _ => Some(Sym::Global(n)),
            }
        })
    }

    pub fn lookup(&mut self, name: &str) -> Result<Sym, Error> {
        let Some(s) = self.find(name) else { return self.fail("unknown name", name) };
        if let Sym::Reg(w, wide) = s {
            let now = self.code.len();
            let span = self.spans.entry(w).or_insert((now, now, 1 + u32::from(wide)));
            span.1 = now;
        }
        Ok(s)
    }

    pub fn label(&mut self, a: &Arg) -> Result<u32, Error> {
        match a {
            Arg::Name(n, _) => match self.lookup(n)? {
                Sym::Label(l) => Ok(l as u32),
                _ => self.fail("not a label", n),
            },
            _ => self.fail("expected a label", format!("{a:?}")),
        }
    }

    pub fn pred(&mut self, a: &Arg) -> Result<u32, Error> {
        match a {
            Arg::Name(n, _) if n == "_" => Ok(self.pred_word()),
            Arg::Name(n, _) => match self.lookup(n)? {
                Sym::Pred(w) => Ok(w),
                _ => self.fail("not a predicate", n),
            },
            Arg::Int(v) => Ok(self.preset(Preset::Word(if *v != 0 { !0 } else { 0 }))),
            _ => self.fail("expected a predicate", format!("{a:?}")),
        }
    }

    /// A register as a destination, and whether it is 64 bits wide.
    pub fn any(&mut self, a: &Arg) -> Result<(u32, bool), Error> {
        match a {
            Arg::Name(n, _) if n == "_" => Ok((self.row(true), false)),
            Arg::Name(n, _) => match self.lookup(n)? {
                Sym::Reg(w, wide) => Ok((w, wide)),
                _ => self.fail("not a register", n),
            },
            _ => self.fail("expected a register", format!("{a:?}")),
        }
    }

    pub fn dest(&mut self, a: &Arg, wide: bool) -> Result<u32, Error> {
        match a {
            Arg::Name(n, _) if n == "_" => Ok(self.row(wide)),
            _ => match self.any(a)? {
                (w, has) if has == wide => Ok(w),
                _ => self.fail("a register of another width than the instruction", format!("{a:?}")),
            },
        }
    }

    /// An operand of either width.
    pub fn src_any(&mut self, a: &Arg) -> Result<(u32, bool), Error> {
        match a {
            Arg::Name(n, _) if !n.starts_with('%') || self.find(n).is_some() => match self.lookup(n)? {
                Sym::Reg(w, wide) => Ok((w, wide)),
                Sym::Global(g) => Ok((self.preset(Preset::Global(g, 0)), true)),
                _ => Ok((self.src(a, false)?, false)),
            },
            _ => Ok((self.src(a, false)?, false)),
        }
    }

    /// A row holding an operand.
    pub fn src(&mut self, a: &Arg, wide: bool) -> Result<u32, Error> {
        let constant = |v: u64| if wide { Preset::Row64(v) } else { Preset::Row32(v as u32) };
        let p = match a {
            Arg::Int(v) => constant(*v as u64),
            Arg::F32(x) if wide => Preset::Row64(f64::from(f32::from_bits(*x)).to_bits()),
            Arg::F32(x) => Preset::Row32(*x),
            Arg::F64(x) if wide => Preset::Row64(*x),
            Arg::F64(x) => Preset::Row32((f64::from_bits(*x) as f32).to_bits()),
            Arg::Name(n, _) => {
                if self.find(n).is_none()
                    && let Some((s, axis)) = special(n)
                {
                    let w = self.preset(Preset::Special(s, axis));
                    return if wide { self.widen(w) } else { Ok(w) };
                }
                match self.lookup(n)? {
                    Sym::Reg(w, has) if has == wide => return Ok(w),
                    Sym::Reg(..) => return self.fail("a register of another width than the instruction", n),
                    Sym::Shared(o) | Sym::Local(o) | Sym::Param(o) => constant(o.into()),
                    Sym::Global(g) if wide => Preset::Global(g, 0),
                    _ => return self.fail("not an operand", n),
                }
            }
            Arg::Mem(base, off) => match (&**base, wide) {
                (Arg::Name(n, _), true) => match self.lookup(n)? {
                    Sym::Global(g) => Preset::Global(g, *off),
                    _ => return self.fail("not an address", n),
                },
                _ => return self.fail("not an operand", format!("{a:?}")),
            },
            _ => return self.fail("expected one operand", format!("{a:?}")),
        };
        Ok(self.preset(p))
    }

    fn widen(&mut self, w: u32) -> Result<u32, Error> {
        let (t, guard) = (self.row(true), std::mem::replace(&mut self.guard, (NONE, false)));
        self.alu(a1(|a: u32| u64::from(a)), t, &[w]);
        self.guard = guard;
        Ok(t)
    }

    pub fn emit(&mut self, op: Op, class: Class) -> &mut Instr {
        let (guard, not) = self.guard;
        let (line, loc) = (self.line, self.loc);
        let (d, v) = (NONE, Box::default());
        self.code.push(Instr {
            op,
            class,
            guard,
            not,
            d,
            a: NONE,
            b: NONE,
            c: NONE,
            e: -1,
            v,
            wides: 0,
            line,
            loc,
        });
        self.code.last_mut().expect("just pushed")
    }

    /// Emits a lane-wise function on rows already found.
    pub fn alu(&mut self, alu: Alu, d: u32, s: &[u32]) -> &mut Instr {
        let i = self.emit(Op::Alu(alu.f), alu.class);
        i.d = d;
        i.a = s.first().copied().unwrap_or(NONE);
        i.b = s.get(1).copied().unwrap_or(i.a);
        i.c = s.get(2).copied().unwrap_or(NONE);
        i.e = s.get(3).map_or(-1, |&e| e.into());
        i
    }

    fn inst(&mut self, i: &'a Inst) -> Result<(), Error> {
        let op: Vec<&str> = i.op.split('.').collect();
        if let Some(m) = crate::modifiers::unknown(&op) {
            return self.fail(format!("unknown modifier .{m}"), &i.op);
        }
        let a = &i.args[..];
        match op[0] {
            "bra" => {
                let l = self.label(a.first().unwrap_or(&Arg::Int(0)))?;
                self.emit(Op::Bra, Class::Control).d = l;
            }
            "ret" if self.end.is_some() => {
                let l = self.end.unwrap_or_default() as u32;
                self.emit(Op::Bra, Class::Control).d = l;
            }
            "ret" | "exit" => {
                self.emit(Op::Exit, Class::Control);
            }
            "brx" => self.branch_by_index(i)?,
            "call" => self.call(i)?,
            "mov" if a.iter().any(|a| matches!(a, Arg::Vector(_))) => self.pack(i)?,
            "mov" if matches!(a, [_, Arg::Name(n, _)] if clock(n).is_some()) => {
                let (d, wide) = self.any(&a[0])?;
                self.emit(Op::Clock { wide }, Class::Move).d = d;
            }
            "setp" => self.setp(i, &op)?,
            "set" => decode_extra::set(self, i, &op)?,
            "addc" | "subc" | "madc" => decode_extra::carry(self, i, &op)?,
            "add" | "sub" | "mad" if op.contains(&"cc") => decode_extra::carry(self, i, &op)?,
            _ if crate::decode_ops::special(self, i, &op)? => {}
            _ => self.lanewise(i, &op)?,
        }
        Ok(())
    }

    fn lanewise(&mut self, i: &Inst, op: &[&str]) -> Result<(), Error> {
        let Some(alu) = select::select(op) else { return self.fail("unknown instruction", &i.op) };
        if i.args.len() != alu.s.len() + 1 {
            return self.fail(format!("expected {} operands", alu.s.len() + 1), &i.op);
        }
        let mut s = Vec::new();
        for (w, a) in alu.s.iter().zip(&i.args[1..]) {
            s.push(match w {
                None => self.pred(a)?,
                Some(wide) => self.src(a, *wide)?,
            });
        }
        let d = match alu.d {
            None => self.pred(&i.args[0])?,
            Some(wide) => self.dest(&i.args[0], wide)?,
        };
        let logic = alu.d.is_none();
        let at = self.alu(alu, d, &s);
        if logic {
            at.v = Box::new([0]);
        }
        Ok(())
    }

    fn setp(&mut self, i: &Inst, op: &[&str]) -> Result<(), Error> {
        let Some((d, rest)) = i.args.split_first() else { return self.fail("expected 3 operands", &i.op) };
        let (p, q) = decode_extra::targets(self, d)?;
        self.compare(p, q, rest, op, &i.op)
    }

    /// A comparison into the predicate `p`, and its opposite into `q` where there is one.
    pub fn compare(&mut self, p: u32, q: u32, args: &[Arg], op: &[&str], text: &str) -> Result<(), Error> {
        let Some(alu) = select::select(op) else { return self.fail("unknown instruction", text) };
        let [a, b, more @ ..] = args else { return self.fail("expected 3 operands", text) };
        let wide = alu.s[0].unwrap_or(false);
        let s = [self.src(a, wide)?, self.src(b, wide)?];
        let (mut c, mut mode) = (NONE, 0);
        if let Some(x) = more.first() {
            c = self.pred(x)?;
            mode = match op.get(2) {
                Some(&"and") => 1,
                Some(&"or") => 2,
                Some(&"xor") => 3,
                _ => return self.fail("unknown combination", text),
            } + if matches!(x, Arg::Name(_, true)) { 4 } else { 0 };
        }
        let at = self.alu(alu, p, &s);
        (at.c, at.e, at.v) = (c, if q == NONE { -1 } else { q.into() }, Box::new([mode]));
        Ok(())
    }

    /// `mov` between a register and the registers of its parts.
    fn pack(&mut self, i: &Inst) -> Result<(), Error> {
        match &i.args[..] {
            [Arg::Vector(parts), whole] => {
                let (w, wide) = self.src_any(whole)?;
                for (n, part) in parts.iter().enumerate() {
                    if matches!(part, Arg::Name(p, _) if p == "_") {
                        continue;
                    }
                    let (d, _) = self.any(part)?;
                    let alu = match (wide, parts.len(), n) {
                        (true, 2, 0) => a1(|a: u64| a as u32),
                        (true, 2, 1) => a1(|a: u64| (a >> 32) as u32),
                        (true, 4, 0) => a1(|a: u64| a as u16),
                        (true, 4, 1) => a1(|a: u64| (a >> 16) as u16),
                        (true, 4, 2) => a1(|a: u64| (a >> 32) as u16),
                        (true, 4, 3) => a1(|a: u64| (a >> 48) as u16),
                        (false, 2, 0) => a1(|a: u32| a as u16),
                        (false, 2, 1) => a1(|a: u32| (a >> 16) as u16),
                        _ => return self.fail("unknown unpacking", &i.op),
                    };
                    self.alu(alu, d, &[w]).class = Class::Move;
                }
            }
            [whole, Arg::Vector(parts)] => {
                let (d, wide) = self.any(whole)?;
                let s = parts.iter().map(|p| self.src(p, false)).collect::<Result<Vec<_>, _>>()?;
                match (wide, &s[..]) {
                    (true, [lo, hi]) => {
                        self.alu(a2(|a: u32, b: u32| u64::from(b) << 32 | u64::from(a)), d, &[*lo, *hi])
                            .class = Class::Move;
                    }
                    (false, [lo, hi]) => {
                        self.alu(a2(|a: u16, b: u16| u32::from(b) << 16 | u32::from(a)), d, &[*lo, *hi])
                            .class = Class::Move;
                    }
                    (true, [x, y, z, w]) => {
                        let (lo, hi) = (self.row(false), self.row(false));
                        let join = || a2(|a: u16, b: u16| u32::from(b) << 16 | u32::from(a));
                        self.alu(join(), lo, &[*x, *y]);
                        self.alu(join(), hi, &[*z, *w]);
                        self.alu(a2(|a: u32, b: u32| u64::from(b) << 32 | u64::from(a)), d, &[lo, hi]);
                    }
                    _ => return self.fail("unknown packing", &i.op),
                }
            }
            _ => return self.fail("unknown move", &i.op),
        }
        Ok(())
    }

    /// `brx.idx`, as a comparison and a branch for each target.
    fn branch_by_index(&mut self, i: &'a Inst) -> Result<(), Error> {
        let [index, Arg::Name(list, _)] = &i.args[..] else {
            return self.fail("expected an index and a list", &i.op);
        };
        let Some(targets) = self.targets.get(list).copied() else { return self.fail("unknown name", list) };
        if self.guard.0 != NONE {
            return self.fail("an indexed branch under a predicate", &i.op);
        }
        let (index, p) = (self.src(index, false)?, self.pred_word());
        for (n, target) in targets.iter().enumerate() {
            let (to, n) = (self.label(target)?, self.preset(Preset::Row32(n as u32)));
            self.alu(crate::alu::cmp(|a: u32, b| a == b), p, &[index, n]).v = Box::new([0]);
            self.guard = (p, false);
            self.emit(Op::Bra, Class::Control).d = to;
            self.guard = (NONE, false);
        }
        Ok(())
    }

    /// Inlines a call; its parameters are the caller's local slots.
    fn call(&mut self, i: &'a Inst) -> Result<(), Error> {
        let (rets, name, args) = match &i.args[..] {
            [Arg::Group(r), Arg::Name(f, _), Arg::Group(a)] => (&r[..], f, &a[..]),
            [Arg::Group(r), Arg::Name(f, _)] => (&r[..], f, &[][..]),
            [Arg::Name(f, _), Arg::Group(a)] => (&[][..], f, &a[..]),
            [Arg::Name(f, _)] => (&[][..], f, &[][..]),
            _ => return self.fail("indirect calls are not supported", &i.op),
        };
        let mut slots = Vec::new();
        for a in rets.iter().chain(args) {
            match a {
                Arg::Name(n, _) => match self.lookup(n)? {
                    s @ Sym::Local(_) => slots.push(s),
                    _ => return self.fail("only .param variables can be passed", n),
                },
                _ => return self.fail("only .param variables can be passed", format!("{a:?}")),
            }
        }
        let local = |s: Option<&Sym>| match s {
            Some(Sym::Local(o)) => *o,
            _ => NONE,
        };
        let unit = self.unit;
        let f = unit.functions.iter().find(|f| f.name == *name && f.body.is_some());
        let Some(f) = f.or_else(|| unit.functions.iter().find(|f| f.name == *name)) else {
            return self.fail("unknown function", name);
        };
        let Some(body) = &f.body else {
            let op = match name.as_str() {
                "vprintf" => Op::Printf,
                "__assertfail" => Op::AssertFail,
                _ => return self.fail("a function without a body", name),
            };
            let first = rets.len();
            let v: Box<[u32]> = (0..args.len()).map(|n| local(slots.get(first + n))).collect();
            let ret = local(slots.first());
            let at = self.emit(op, Class::Control);
            (at.v, at.d) = (v, if first == 1 { ret } else { NONE });
            return Ok(());
        };
        if self.depth == 32 {
            return self.fail("recursion is not supported", name);
        }
        if self.guard.0 != NONE {
            return self.fail("a call under a predicate", name);
        }
        let formal = f.returns.iter().chain(&f.params);
        if formal.clone().count() != slots.len() || formal.clone().any(|v| v.space != ".param") {
            return self.fail("arguments that do not match the function's", name);
        }
        let end = self.labels.len();
        self.labels.push(None);
        let saved = (self.floor, self.end, std::mem::replace(&mut self.function, name.clone()));
        self.floor = self.scopes.len();
        self.scopes.push(formal.map(|v| v.name.clone()).zip(slots.iter().copied()).collect());
        (self.end, self.depth) = (Some(end), self.depth + 1);
        self.body(body)?;
        self.scopes.pop();
        self.depth -= 1;
        (self.floor, self.end, self.function) = saved;
        self.labels[end] = Some(self.code.len() as u32);
        Ok(())
    }

    /// Whether an inlined function is being decoded.
    pub fn inlined(&self) -> bool {
        self.depth > 0
    }
}

fn clock(name: &str) -> Option<()> {
    matches!(name, "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo").then_some(())
}

fn special(name: &str) -> Option<(Special, u8)> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((b, "x")) => (b, 0),
        Some((b, "y")) => (b, 1),
        Some((b, "z")) => (b, 2),
        _ => (name, 0),
    };
    Some((
        match base {
            "%tid" => Special::Tid,
            "%ntid" => Special::Ntid,
            "%ctaid" => Special::Ctaid,
            "%nctaid" => Special::Nctaid,
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%nwarpid" => Special::Nwarp,
            "%lanemask_eq" => return Some((Special::LaneMask, 0)),
            "%lanemask_le" => return Some((Special::LaneMask, 1)),
            "%lanemask_lt" => return Some((Special::LaneMask, 2)),
            "%lanemask_ge" => return Some((Special::LaneMask, 3)),
            "%lanemask_gt" => return Some((Special::LaneMask, 4)),
            "%dynamic_smem_size" => Special::DynamicShared,
            "%total_smem_size" => Special::TotalShared,
            "%smid" | "%gridid" | "%cluster_ctarank" => Special::Zero,
            _ => return None,
        },
        axis,
    ))
}
