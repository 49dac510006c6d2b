//! Tokens to a module. Scopes of inline assembly are resolved here: registers become ids, labels become indices.

use std::collections::HashMap;

use super::lexer::{Lexed, Token, lex};
use super::{Class, Entry, Instruction, Module, Operand, Param, PtxError, Variable, VariableSpace};

/// Parses a PTX module.
///
/// # Errors
/// What is no PTX, with line and text.
pub fn parse(text: &str) -> Result<Module<'_>, PtxError> {
    let tokens = lex(text)?;
    let mut parser = Parser { text, tokens: &tokens, at: 0 };
    parser.module()
}

struct Parser<'a, 't> {
    text: &'a str,
    tokens: &'t [Lexed<'a>],
    at: usize,
}

struct Scope<'a> {
    registers: HashMap<&'a str, u32>,
    /// `%r<5>`: prefix, first id, count.
    ranges: Vec<(&'a str, u32, u32)>,
    labels: HashMap<&'a str, u32>,
    parent: Option<usize>,
}

struct Body<'a> {
    scopes: Vec<Scope<'a>>,
    scope: usize,
    classes: Vec<Class>,
    instructions: Vec<Instruction<'a>>,
    /// Instruction, operand, label, scope: resolved at the end.
    jumps: Vec<(usize, usize, &'a str, usize)>,
    tables: Vec<(&'a str, Vec<&'a str>, usize, u32)>,
    variables: Vec<Variable<'a>>,
    source: (u32, u32),
    inlined_at: (u32, u32),
}

impl<'a> Body<'a> {
    fn register(&self, name: &str) -> Option<u32> {
        let mut scope = Some(self.scope);
        while let Some(s) = scope {
            let here = &self.scopes[s];
            if let Some(id) = here.registers.get(name) {
                return Some(*id);
            }
            for (prefix, first, count) in &here.ranges {
                let index = name.strip_prefix(prefix).and_then(|digits| digits.parse::<u32>().ok());
                if let Some(index) = index.filter(|i| i < count) {
                    return Some(first + index);
                }
            }
            scope = here.parent;
        }
        None
    }

    fn label(&self, name: &str, scope: usize) -> Option<u32> {
        let mut scope = Some(scope);
        while let Some(s) = scope {
            if let Some(at) = self.scopes[s].labels.get(name) {
                return Some(*at);
            }
            scope = self.scopes[s].parent;
        }
        None
    }
}

fn class(word: &str) -> Option<Class> {
    Some(match word {
        ".pred" => Class::Pred,
        ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => Class::B16,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => Class::B32,
        ".b64" | ".u64" | ".s64" | ".f64" => Class::B64,
        _ => return None,
    })
}

fn type_bytes(word: &str) -> Option<u32> {
    Some(match word {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        _ => return None,
    })
}

impl<'a> Parser<'a, '_> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at.min(self.tokens.len().saturating_sub(1))).map_or(1, |t| t.line)
    }

    fn error(&self, why: impl Into<String>) -> PtxError {
        let line = self.line();
        let text = self.text.lines().nth(line as usize - 1).unwrap_or_default().trim();
        PtxError::at(line, text, why)
    }

    fn next(&mut self, wanted: &str) -> Result<Token<'a>, PtxError> {
        let token = self.peek().ok_or_else(|| self.error(format!("ends where {wanted} should follow")))?;
        self.at += 1;
        Ok(token)
    }

    fn word(&mut self, wanted: &str) -> Result<&'a str, PtxError> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.error(format!("{wanted} expected"))),
        }
    }

    fn int(&mut self, wanted: &str) -> Result<u64, PtxError> {
        match self.peek() {
            Some(Token::Int(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.error(format!("{wanted} expected"))),
        }
    }

    fn int32(&mut self, wanted: &str) -> Result<u32, PtxError> {
        let value = self.int(wanted)?;
        u32::try_from(value).map_err(|_| self.error(format!("{wanted} does not fit 32 bits")))
    }

    fn eat(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: u8) -> Result<(), PtxError> {
        if self.eat(mark) { Ok(()) } else { Err(self.error(format!("`{}` expected", mark as char))) }
    }

    /// Skips to behind the brace that closes the one that follows.
    fn skip_braces(&mut self) -> Result<(), PtxError> {
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next("`}`")? {
                Token::Mark(b'{') => depth += 1,
                Token::Mark(b'}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn skip_statement(&mut self) -> Result<(), PtxError> {
        while self.next("`;`")? != Token::Mark(b';') {}
        Ok(())
    }

    fn module(&mut self) -> Result<Module<'a>, PtxError> {
        let mut module =
            Module { target: "", files: HashMap::new(), variables: Vec::new(), entries: Vec::new() };
        let mut external = false;
        while let Some(token) = self.peek() {
            let Token::Word(word) = token else { return Err(self.error("directive expected")) };
            match word {
                ".version" => {
                    self.at += 2;
                }
                ".target" => {
                    self.at += 1;
                    module.target = self.word("target")?;
                    while self.eat(b',') {
                        self.word("target option")?;
                    }
                }
                ".address_size" => {
                    self.at += 1;
                    if self.int("address size")? != 64 {
                        self.at -= 1;
                        return Err(self.error("only 64-bit addresses are known"));
                    }
                }
                ".file" => {
                    self.at += 1;
                    let index = self.int32("file number")?;
                    if let Token::Text(name) = self.next("file name")? {
                        module.files.insert(index, name);
                    }
                    while self.eat(b',') {
                        self.int("file date or size")?;
                    }
                }
                ".section" => {
                    self.at += 1;
                    self.word("section name")?;
                    self.skip_braces()?;
                }
                ".pragma" | ".alias" => self.skip_statement()?,
                ".visible" | ".weak" | ".common" => self.at += 1,
                ".extern" => {
                    self.at += 1;
                    external = true;
                    continue;
                }
                ".func" => {
                    while !matches!(self.peek(), Some(Token::Mark(b'{' | b';'))) {
                        self.next("function body")?;
                    }
                    if !self.eat(b';') {
                        self.skip_braces()?;
                    }
                }
                ".shared" | ".global" | ".const" => {
                    let mut variables = self.variables(external)?;
                    module.variables.append(&mut variables);
                }
                ".entry" => {
                    self.at += 1;
                    let entry = self.entry()?;
                    module.entries.push(entry);
                }
                _ => return Err(self.error(format!("directive `{word}` is not known"))),
            }
            external = false;
        }
        if module.target.is_empty() {
            return Err(PtxError::at(
                1,
                self.text.lines().next().unwrap_or_default(),
                "no .target: not a PTX module",
            ));
        }
        Ok(module)
    }

    fn variables(&mut self, external: bool) -> Result<Vec<Variable<'a>>, PtxError> {
        let space = match self.word("state space")? {
            ".shared" => VariableSpace::Shared,
            ".global" => VariableSpace::Global,
            ".const" => VariableSpace::Const,
            _ => VariableSpace::Local,
        };
        let (mut align, mut element, mut times) = (None, None, 1);
        while let Some(Token::Word(word)) = self.peek() {
            if !word.starts_with('.') {
                break;
            }
            self.at += 1;
            match word {
                ".align" => align = Some(self.int32("alignment")?),
                ".v2" => times = 2,
                ".v4" => times = 4,
                ".attribute" => return Err(self.error("attributes of variables are not known")),
                _ => element = Some(type_bytes(word).ok_or_else(|| self.error("type expected"))?),
            }
        }
        let element = element.ok_or_else(|| self.error("type expected"))?;
        let mut found = Vec::new();
        loop {
            let name = self.word("name")?;
            let mut count = Some(times);
            while self.eat(b'[') {
                if self.eat(b']') {
                    count = None;
                } else {
                    let n = self.int32("array length")?;
                    self.expect(b']')?;
                    count = count.and_then(|c: u32| c.checked_mul(n));
                }
            }
            let mut init = Vec::new();
            if self.eat(b'=') {
                self.initial_values(element, &mut init)?;
                count.get_or_insert(init.len() as u32 / element);
            }
            let bytes = count.and_then(|c| c.checked_mul(element));
            found.push(Variable {
                space,
                name,
                align: align.unwrap_or(element * times),
                bytes,
                init,
                external,
            });
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')?;
        Ok(found)
    }

    fn initial_values(&mut self, element: u32, init: &mut Vec<u8>) -> Result<(), PtxError> {
        if self.eat(b'{') {
            while !self.eat(b'}') {
                self.initial_values(element, init)?;
                self.eat(b',');
            }
            return Ok(());
        }
        let negative = self.eat(b'-');
        let bits = match self.next("value")? {
            Token::Int(v) if negative => v.wrapping_neg(),
            Token::Int(v) | Token::F64(v) => v,
            Token::F32(v) => u64::from(v),
            _ => {
                self.at -= 1;
                return Err(self.error("only numbers may initialise variables"));
            }
        };
        init.extend_from_slice(&bits.to_le_bytes()[..element as usize]);
        Ok(())
    }

    fn entry(&mut self) -> Result<Entry<'a>, PtxError> {
        let name = self.word("kernel name")?;
        let mut params = Vec::new();
        if self.eat(b'(') {
            let mut end = 0u32;
            while !self.eat(b')') {
                let (mut bytes, mut align) = (0, 0);
                while let Some(Token::Word(word)) = self.peek() {
                    if !word.starts_with('.') {
                        break;
                    }
                    self.at += 1;
                    match word {
                        ".align" => {
                            let value = self.int32("alignment")?;
                            align = align.max(value);
                        }
                        ".param" | ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                        _ => bytes = type_bytes(word).ok_or_else(|| self.error("type expected"))?,
                    }
                }
                let param = self.word("parameter name")?;
                // The alignment behind `.ptr` is the pointee's: only arrays have one of their own.
                let mut own = bytes;
                if self.eat(b'[') {
                    own = align.max(bytes);
                    bytes *= self.int32("array length")?;
                    self.expect(b']')?;
                }
                if own == 0 || !own.is_power_of_two() {
                    return Err(self.error("alignment is not a power of two"));
                }
                let offset = end.next_multiple_of(own);
                params.push(Param { name: param, offset, bytes });
                end = offset + bytes;
                self.eat(b',');
            }
        }
        let mut max_threads = None;
        while let Some(Token::Word(word)) = self.peek() {
            self.at += 1;
            let mut product = 1u32;
            while let Some(Token::Int(value)) = self.peek() {
                self.at += 1;
                product = product.saturating_mul(u32::try_from(value).unwrap_or(u32::MAX));
                self.eat(b',');
            }
            match word {
                ".maxntid" | ".reqntid" => max_threads = Some(product),
                ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {}
                ".pragma" => self.skip_statement()?,
                _ => {
                    self.at -= 1;
                    return Err(self.error(format!("directive `{word}` of a kernel is not known")));
                }
            }
        }
        let root =
            Scope { registers: HashMap::new(), ranges: Vec::new(), labels: HashMap::new(), parent: None };
        let mut body = Body {
            scopes: vec![root],
            scope: 0,
            classes: Vec::new(),
            instructions: Vec::new(),
            jumps: Vec::new(),
            tables: Vec::new(),
            variables: Vec::new(),
            source: (0, 0),
            inlined_at: (0, 0),
        };
        self.expect(b'{')?;
        self.statements(&mut body)?;
        for (instruction, operand, name, scope) in std::mem::take(&mut body.jumps) {
            let line = body.instructions[instruction].line;
            let target = body.label(name, scope).map(Operand::Label);
            let target = match target {
                Some(target) => target,
                None if body.instructions[instruction].opcode.starts_with("bra") => {
                    return Err(PtxError::at(line, name, "no such label"));
                }
                None => Operand::Symbol(name),
            };
            body.instructions[instruction].operands[operand] = target;
        }
        let mut tables = HashMap::new();
        for (table, names, scope, line) in &body.tables {
            let targets: Option<Vec<u32>> = names.iter().map(|n| body.label(n, *scope)).collect();
            let targets = targets.ok_or_else(|| PtxError::at(*line, table, "a branch target is no label"))?;
            tables.insert(*table, targets);
        }
        Ok(Entry {
            name,
            params,
            max_threads,
            variables: body.variables,
            registers: body.classes,
            body: body.instructions,
            tables,
        })
    }

    fn statements(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        let mut depth = 1;
        while depth > 0 {
            match self.peek().ok_or_else(|| self.error("kernel without end"))? {
                Token::Mark(b'{') => {
                    self.at += 1;
                    depth += 1;
                    let parent = Some(body.scope);
                    body.scope = body.scopes.len();
                    body.scopes.push(Scope {
                        registers: HashMap::new(),
                        ranges: Vec::new(),
                        labels: HashMap::new(),
                        parent,
                    });
                }
                Token::Mark(b'}') => {
                    self.at += 1;
                    depth -= 1;
                    body.scope = body.scopes[body.scope].parent.unwrap_or(0);
                }
                Token::Mark(b';') => self.at += 1,
                Token::Mark(b'@') => self.instruction(body)?,
                Token::Word(".loc") => self.location(body)?,
                Token::Word(".reg") => self.registers(body)?,
                Token::Word(".shared" | ".local" | ".global" | ".const") => {
                    let mut variables = self.variables(false)?;
                    body.variables.append(&mut variables);
                }
                Token::Word(".pragma") => self.skip_statement()?,
                Token::Word(".param") => {
                    return Err(
                        self.error("parameters of calls are not known: nothing may be called, only inlined")
                    );
                }
                Token::Word(word) => {
                    if self.tokens.get(self.at + 1).map(|t| t.token) == Some(Token::Mark(b':')) {
                        self.label(word, body)?;
                    } else {
                        self.instruction(body)?;
                    }
                }
                _ => return Err(self.error("statement expected")),
            }
        }
        Ok(())
    }

    fn label(&mut self, name: &'a str, body: &mut Body<'a>) -> Result<(), PtxError> {
        let line = self.line();
        self.at += 2;
        if self.peek() == Some(Token::Word(".branchtargets")) {
            self.at += 1;
            let mut targets = Vec::new();
            while !self.eat(b';') {
                targets.push(self.word("label")?);
                self.eat(b',');
            }
            body.tables.push((name, targets, body.scope, line));
            return Ok(());
        }
        let here = body.instructions.len() as u32;
        if body.scopes[body.scope].labels.insert(name, here).is_some() {
            return Err(PtxError::at(line, name, "label stands twice"));
        }
        Ok(())
    }

    fn location(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        self.at += 1;
        let file = self.int32("file number")?;
        let line = self.int32("line")?;
        self.int("column")?;
        let mut inlined_at = (0, 0);
        while self.eat(b',') {
            match self.word("attribute of .loc")? {
                "inlined_at" => {
                    inlined_at = (self.int32("file number")?, self.int32("line")?);
                    self.int("column")?;
                }
                _ => {
                    self.word("name")?;
                    if self.eat(b'+') {
                        self.int("offset")?;
                    }
                }
            }
        }
        // Line 0 marks code without a place of its own; the last place is still the best there is.
        if line != 0 {
            body.source = (file, line);
            body.inlined_at = inlined_at;
        }
        Ok(())
    }

    fn registers(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        self.at += 1;
        let word = self.word("type")?;
        let class =
            class(word).ok_or_else(|| self.error(format!("registers of type {word} are not known")))?;
        loop {
            let name = self.word("register")?;
            let first = body.classes.len() as u32;
            let mut count = 1;
            let scope = &mut body.scopes[body.scope];
            if self.eat(b'<') {
                count = self.int32("number of registers")?;
                self.expect(b'>')?;
                scope.ranges.push((name, first, count));
            } else {
                scope.registers.insert(name, first);
            }
            if count > 1 << 20 {
                return Err(self.error("more registers than a kernel can have"));
            }
            body.classes.extend((0..count).map(|_| class));
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instruction(&mut self, body: &mut Body<'a>) -> Result<(), PtxError> {
        let line = self.line();
        let mut guard = None;
        if self.eat(b'@') {
            let negated = self.eat(b'!');
            let name = self.word("predicate")?;
            let id = body.register(name).filter(|id| body.classes[*id as usize] == Class::Pred);
            guard = Some((id.ok_or_else(|| self.error(format!("`{name}` is no predicate")))?, negated));
        }
        let opcode = self.word("opcode")?;
        if opcode.starts_with('.') {
            self.at -= 1;
            return Err(self.error(format!("directive `{opcode}` is not known")));
        }
        let index = body.instructions.len();
        let mut operands = Vec::new();
        while !self.eat(b';') {
            let operand = self.operand(body)?;
            if let Operand::Symbol(name) = operand {
                body.jumps.push((index, operands.len(), name, body.scope));
            }
            operands.push(operand);
            if !self.eat(b',') && self.peek() != Some(Token::Mark(b';')) {
                return Err(self.error("`,` or `;` expected"));
            }
        }
        let (source, inlined_at) = (body.source, body.inlined_at);
        body.instructions.push(Instruction { guard, opcode, operands, line, source, inlined_at });
        Ok(())
    }

    fn operand(&mut self, body: &Body<'a>) -> Result<Operand<'a>, PtxError> {
        let operand = match self.next("operand")? {
            Token::Mark(b'{') => {
                let mut parts = Vec::new();
                while !self.eat(b'}') {
                    parts.push(self.operand(body)?);
                    self.eat(b',');
                }
                Operand::Vector(parts)
            }
            Token::Mark(b'[') => {
                let base = self.operand(body)?;
                let mut offset = 0i64;
                loop {
                    let sign = if self.eat(b'+') {
                        1
                    } else if self.peek() == Some(Token::Mark(b'-')) {
                        self.at += 1;
                        -1
                    } else {
                        break;
                    };
                    let negative = self.eat(b'-');
                    let value = self.int("offset")? as i64;
                    offset = offset.wrapping_add(sign * if negative { value.wrapping_neg() } else { value });
                }
                self.expect(b']')?;
                Operand::Address(Box::new(base), offset)
            }
            Token::Mark(b'!') => {
                let name = self.word("predicate")?;
                let id = body.register(name);
                Operand::Not(id.ok_or_else(|| self.error(format!("`{name}` is no register")))?)
            }
            Token::Mark(b'-') => match self.next("number")? {
                Token::Int(v) => Operand::Int(v.wrapping_neg()),
                Token::F32(v) => Operand::F32(v ^ 1 << 31),
                Token::F64(v) => Operand::F64(v ^ 1 << 63),
                _ => {
                    self.at -= 1;
                    return Err(self.error("number expected"));
                }
            },
            Token::Int(v) => Operand::Int(v),
            Token::F32(v) => Operand::F32(v),
            Token::F64(v) => Operand::F64(v),
            Token::Word("_") => Operand::Sink,
            Token::Word(name) => match body.register(name) {
                Some(id) => Operand::Register(id),
                None if name.starts_with('%') => Operand::Special(name),
                None => Operand::Symbol(name),
            },
            Token::Text(_) | Token::Mark(_) => {
                self.at -= 1;
                return Err(self.error("operand expected"));
            }
        };
        if self.eat(b'|') {
            let other = self.operand(body)?;
            return Ok(Operand::Pair(Box::new(operand), Box::new(other)));
        }
        Ok(operand)
    }
}
