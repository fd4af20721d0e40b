//! Operands and what follows them: selections, indexes and calls.

use super::{Abort, OPERANDS, Parse, Parser};
use crate::{
    ast::{Call, Element, Entry, Expr, ExprKind, Field, Literal, Select, Struct, op},
    lexer::Tok,
    literal::{unquote, unquote_bytes},
};

/// Names that are no variable's and no function's, but may be a field's.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

impl Parser<'_> {
    /// An operand with its selections, indexes and calls.
    pub(super) fn member(&mut self) -> Parse<Expr> {
        let outside = self.depth;
        let mut operand = self.primary()?;
        loop {
            if let Some(dot) = self.take(".") {
                self.deeper(super::TOO_LONG)?;
                operand = self.selection(operand, dot.start)?;
            } else if let Some(bracket) = self.take("[") {
                self.deeper(super::TOO_LONG)?;
                let optional = self.take("?").is_some();
                let index = self.expr()?;
                self.want("]")?;
                let function = if optional { op::OPT_INDEX } else { op::INDEX };
                operand = self.call(bracket.start, function, vec![operand, index]);
            } else {
                self.depth = outside;
                return Ok(operand);
            }
        }
    }

    /// What follows a dot.
    fn selection(&mut self, operand: Expr, dot: u32) -> Parse<Expr> {
        let optional = self.take("?").is_some();
        let token = self.token();
        let name = self.selected_name()?;
        if optional {
            let field = self.literal(token.start, Literal::String(name));
            return Ok(self.call(dot, op::OPT_SELECT, vec![operand, field]));
        }
        if token.tok == Tok::Ident
            && let Some(open) = self.take("(")
        {
            let args = self.arguments()?;
            return Ok(self.call_or_macro(open.start, Some(operand), name, args));
        }
        Ok(self.node(dot, ExprKind::Select(Box::new(Select { operand, field: name, test: false }))))
    }

    /// The field after a dot.
    fn selected_name(&mut self) -> Parse<String> {
        let token = self.token();
        if matches!(token.tok, Tok::Ident | Tok::Quoted) {
            return self.field_name();
        }
        let message = format!("Syntax error: no viable alternative at input '.{}'", self.text(token));
        // Words that are tokens of their own are told as if they were reserved.
        let message = match token.tok {
            Tok::Mark(word @ ("true" | "false" | "null")) => {
                format!("Syntax error: mismatched input '{word}' expecting IDENTIFIER")
            }
            _ => message,
        };
        self.errors.report(token.start, message);
        Err(Abort)
    }

    /// An identifier, also one between backquotes.
    fn field_name(&mut self) -> Parse<String> {
        let token = self.token();
        match token.tok {
            Tok::Ident => {
                self.step();
                Ok(self.text(token).to_owned())
            }
            // Kubernetes does not turn cel-go's backquotes on.
            Tok::Quoted => {
                self.errors.report(token.start, "unsupported syntax: '`'");
                Err(Abort)
            }
            _ => Err(self.mismatch("{'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}")),
        }
    }

    /// Arguments up to the closing parenthesis, the opening one being read.
    fn arguments(&mut self) -> Parse<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.take(",").is_none() {
                self.want(")")?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Parse<Expr> {
        let token = self.token();
        match token.tok {
            Tok::Mark("(") => {
                self.step();
                let inner = self.expr()?;
                self.want(")")?;
                Ok(inner)
            }
            Tok::Mark("[") => self.list(),
            Tok::Mark("{") => self.map(),
            Tok::Mark(".") | Tok::Ident => self.name(),
            Tok::Mark("true" | "false" | "null")
            | Tok::Int
            | Tok::Uint
            | Tok::Float
            | Tok::Str
            | Tok::Bytes => Ok(self.constant()),
            Tok::Mark("-") if matches!(self.peek(1), Tok::Int | Tok::Float) => Ok(self.constant()),
            _ if begins_operand(self.peek(1)) => {
                self.extraneous(OPERANDS);
                self.primary()
            }
            _ => Err(self.mismatch(OPERANDS)),
        }
    }

    fn constant(&mut self) -> Expr {
        let first = self.step();
        let negative = first.tok == Tok::Mark("-");
        let token = if negative { self.step() } else { first };
        let text = self.text(token);
        let sign = if negative { "-" } else { "" };
        let digits = text.trim_end_matches(['u', 'U']);
        let (radix, digits) = digits.strip_prefix("0x").map_or((10, digits), |digits| (16, digits));
        let literal = match token.tok {
            Tok::Mark(word) => Ok(match word {
                "true" => Literal::Bool(true),
                "false" => Literal::Bool(false),
                _ => Literal::Null,
            }),
            Tok::Int => i64::from_str_radix(&format!("{sign}{digits}"), radix)
                .map(Literal::Int)
                .map_err(|_| "invalid int literal"),
            Tok::Uint => {
                u64::from_str_radix(digits, radix).map(Literal::Uint).map_err(|_| "invalid uint literal")
            }
            Tok::Float => match format!("{sign}{text}").parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(Literal::Double(number)),
                _ => Err("invalid double literal"),
            },
            Tok::Bytes => unquote_bytes(&text[1..]).map(Literal::Bytes),
            _ => unquote(text).map(Literal::String),
        };
        match literal {
            Ok(literal) => self.literal(first.start, literal),
            Err(message) => self.error(first.start, message),
        }
    }

    /// A variable, a call of a global function, or an object literal.
    fn name(&mut self) -> Parse<Expr> {
        let start = self.token().start;
        let dot = self.take(".").is_some();
        let token = self.token();
        if token.tok != Tok::Ident {
            return Err(self.mismatch("IDENTIFIER"));
        }
        if let Some(length) = self.object_name_length() {
            return self.object(dot, length);
        }
        self.step();
        let text = self.text(token).to_owned();
        let reserved = RESERVED.contains(&text.as_str());
        let name = if dot { format!(".{text}") } else { text.clone() };
        if let Some(open) = self.take("(") {
            let args = self.arguments()?;
            if reserved {
                return Ok(self.error(start, format!("reserved identifier: {text}")));
            }
            return Ok(self.call_or_macro(open.start, None, name, args));
        }
        if reserved {
            return Ok(self.error(start, format!("reserved identifier: {text}")));
        }
        Ok(self.node(token.start, ExprKind::Ident(name)))
    }

    /// The number of tokens of a dotted name that is followed by a brace.
    fn object_name_length(&self) -> Option<usize> {
        let mut length = 1;
        while self.peek(length) == Tok::Mark(".") && self.peek(length + 1) == Tok::Ident {
            length += 2;
        }
        (self.peek(length) == Tok::Mark("{")).then_some(length)
    }

    fn object(&mut self, dot: bool, length: usize) -> Parse<Expr> {
        let mut name = String::from(if dot { "." } else { "" });
        for _ in 0..length {
            let token = self.step();
            name.push_str(self.text(token));
        }
        let open = self.want("{")?;
        let mut fields = Vec::new();
        while self.take("}").is_none() {
            if !fields.is_empty() {
                self.want(",")?;
                if self.take("}").is_some() {
                    break;
                }
            }
            let optional = self.take("?").is_some();
            let name = self.field_name()?;
            let colon = self.want(":")?;
            let id = self.new_id(colon.start);
            fields.push(Field { id, name, value: self.expr()?, optional });
        }
        Ok(self.node(open.start, ExprKind::Struct(Box::new(Struct { name, fields }))))
    }

    fn list(&mut self) -> Parse<Expr> {
        let open = self.step();
        let mut elements = Vec::new();
        while self.take("]").is_none() {
            if !elements.is_empty() {
                self.want(",")?;
                if self.take("]").is_some() {
                    break;
                }
            }
            let optional = self.take("?").is_some();
            elements.push(Element { value: self.expr()?, optional });
        }
        Ok(self.node(open.start, ExprKind::List(elements)))
    }

    fn map(&mut self) -> Parse<Expr> {
        let open = self.step();
        let mut entries = Vec::new();
        while self.take("}").is_none() {
            if !entries.is_empty() {
                self.want(",")?;
                if self.take("}").is_some() {
                    break;
                }
            }
            let optional = self.take("?").is_some();
            let key = self.expr()?;
            self.want(":")?;
            entries.push(Entry { key, value: self.expr()?, optional });
        }
        Ok(self.node(open.start, ExprKind::Map(entries)))
    }

    /// A call, or what the macro of that name makes of it.
    fn call_or_macro(
        &mut self,
        offset: u32,
        target: Option<Expr>,
        function: String,
        args: Vec<Expr>,
    ) -> Expr {
        let call = Call { target, function, args };
        match self.expand(offset, call) {
            Ok(expanded) => expanded,
            Err(call) => self.node(offset, ExprKind::Call(call)),
        }
    }
}

/// Whether an operand can begin with a token.
const fn begins_operand(tok: Tok) -> bool {
    match tok {
        Tok::Ident | Tok::Int | Tok::Uint | Tok::Float | Tok::Str | Tok::Bytes => true,
        Tok::Mark(mark) => {
            matches!(mark.as_bytes(), b"[" | b"{" | b"(" | b"." | b"-" | b"!" | b"true" | b"false" | b"null")
        }
        Tok::Quoted | Tok::End => false,
    }
}
