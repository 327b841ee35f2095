# Reads one JSON value from standard input (RFC 8259) and prints what JSON_PATH leads to; see json-values.
# JSON_PATH holds, one a line: the number of keys, the keys, and a last line without meaning.
# Nothing is printed when the text is malformed. Written for any awk that works on bytes (LC_ALL=C).

BEGIN {
    split(ENVIRON["JSON_PATH"], want, "\n")
    wanted = want[1] + 0
    plain["\""] = "\""; plain["\\"] = "\\"; plain["/"] = "/"
    plain["b"] = "\b"; plain["f"] = "\f"; plain["n"] = "\n"; plain["r"] = "\r"; plain["t"] = "\t"
    DEEPEST = 64
}

{ rest = rest $0 "\n" }

END {
    if (failed) exit 1
    space()
    value(0, 1)
    space()
    if (rest != "") fail("text after the value")
    printf "%s", found
}

function fail(why) {
    print "json-values: " why " at: " substr(rest, 1, 20) > "/dev/stderr"
    failed = 1
    exit 1
}

function take(length_) { rest = substr(rest, length_ + 1) }

function space() { if (match(rest, /^[ \t\r\n]+/)) take(RLENGTH) }

function emit(text) { found = found text "\n" }

# One value. depth: how many keys lead to it. on: whether all of them are wanted.
function value(depth, on,    first, text) {
    if (depth > DEEPEST) fail("nested too deep")
    first = substr(rest, 1, 1)
    if (first == "{") { object(depth, on); return }
    if (first == "[") { array(depth, on); return }
    if (first == "\"") text = string()
    else if (match(rest, /^(true|false|null)/) || match(rest, /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/)) {
        text = substr(rest, 1, RLENGTH)
        take(RLENGTH)
    }
    else fail("no value")
    if (on && depth == wanted) emit(text)
}

function leads(key, depth, on) { return on && depth < wanted && (want[depth + 2] == "*" || want[depth + 2] "" == key "") }

function object(depth, on,    key) {
    take(1)
    space()
    if (substr(rest, 1, 1) == "}") { take(1); return }
    while (1) {
        if (substr(rest, 1, 1) != "\"") fail("no key")
        key = string()
        space()
        if (substr(rest, 1, 1) != ":") fail("no colon")
        take(1)
        space()
        value(depth + 1, leads(key, depth, on))
        if (end_of_member("}")) return
    }
}

function array(depth, on,    index_) {
    take(1)
    space()
    if (substr(rest, 1, 1) == "]") { take(1); return }
    for (index_ = 0; ; index_++) {
        value(depth + 1, leads(index_, depth, on))
        if (end_of_member("]")) return
    }
}

# After a member: 1 at the closing bracket, 0 when another member must follow.
function end_of_member(closing,    next_) {
    space()
    next_ = substr(rest, 1, 1)
    if (next_ != "," && next_ != closing) fail("neither , nor " closing)
    take(1)
    if (next_ == closing) return 1
    space()
    return 0
}

function string(    text, chunk, next_) {
    take(1)
    text = ""
    while (1) {
        if (match(rest, /^[^"\\]+/)) {
            chunk = substr(rest, 1, RLENGTH)
            if (chunk ~ /[\001-\037]/) fail("a control character in a string")
            text = text chunk
            take(RLENGTH)
        }
        next_ = substr(rest, 1, 1)
        if (next_ == "\"") { take(1); return text }
        if (next_ == "") fail("a string without end")
        next_ = substr(rest, 2, 1)
        if (next_ == "u") { text = text character(); continue }
        if (next_ == "" || !(next_ in plain)) fail("an unknown escape")
        text = text plain[next_]
        take(2)
    }
}

# A \uXXXX escape, or a surrogate pair of them, as UTF-8. What UTF-8 or awk cannot hold becomes U+FFFD.
function character(    code, low) {
    code = escaped()
    if (code >= 55296 && code <= 56319 && substr(rest, 1, 2) == "\\u") {
        low = hex(substr(rest, 3, 4))
        if (low >= 56320 && low <= 57343) {
            take(6)
            code = 65536 + (code - 55296) * 1024 + low - 56320
        }
    }
    if (code == 0 || (code >= 55296 && code <= 57343)) code = 65533
    if (code < 128) return byte(code)
    if (code < 2048) return byte(192 + int(code / 64)) byte(128 + code % 64)
    if (code < 65536) return byte(224 + int(code / 4096)) byte(128 + int(code / 64) % 64) byte(128 + code % 64)
    return byte(240 + int(code / 262144)) byte(128 + int(code / 4096) % 64) byte(128 + int(code / 64) % 64) byte(128 + code % 64)
}

function escaped(    code) {
    code = hex(substr(rest, 3, 4))
    if (code < 0) fail("a broken \\u escape")
    take(6)
    return code
}

# Four hexadecimal digits as a number; -1 for anything else.
function hex(digits,    code, i, at) {
    if (length(digits) != 4) return -1
    for (i = 1; i <= 4; i++) {
        at = index("0123456789abcdef", tolower(substr(digits, i, 1)))
        if (at == 0) return -1
        code = code * 16 + at - 1
    }
    return code
}

function byte(code) { return sprintf("%c", code) }
