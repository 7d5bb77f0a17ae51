#include "gateway/mime_scan.h"

#include "gateway/base/codec.h"
#include "gateway/mime.h"

/* ---- What reading will cost ---- */

#define BOUNDARY_SLOTS 4096u
#define BOUNDARIES_MAX 1024u
#define DELIMITERS_MAX ((size_t)4 * MIME_PARTS_MAX)
#define DASH_LINES_UNSURE_MAX ((size_t)10000)
#define COMPARISONS_MAX ((size_t)20000000)

struct boundary_scan {
    uint64_t slots[BOUNDARY_SLOTS]; /* open addressing by hash; 0: free */
    size_t count;
    bool unsure; /* a boundary is written in a way this scan does not decode */
    size_t dash_lines;
    size_t delimiters;
};

static uint64_t boundary_hash(struct span boundary)
{
    uint64_t hash = codec_fnv1a(boundary);
    return hash != 0 ? hash : 1;
}

static bool boundary_known(const struct boundary_scan *scan, struct span boundary)
{
    uint64_t hash = boundary_hash(boundary);
    size_t slot = hash % BOUNDARY_SLOTS;
    while (scan->slots[slot] != 0) {
        if (scan->slots[slot] == hash) {
            return true;
        }
        slot = (slot + 1) % BOUNDARY_SLOTS;
    }
    return false;
}

static void boundary_add(struct boundary_scan *scan, struct span boundary)
{
    if (boundary_known(scan, boundary)) {
        return;
    }
    scan->count++;
    if (scan->count > BOUNDARIES_MAX) {
        return; /* refused by the count */
    }
    uint64_t hash = boundary_hash(boundary);
    size_t slot = hash % BOUNDARY_SLOTS;
    while (scan->slots[slot] != 0) {
        slot = (slot + 1) % BOUNDARY_SLOTS;
    }
    scan->slots[slot] = hash;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* `s` follows the word "boundary". */
static void boundary_read(struct boundary_scan *scan, struct span s)
{
    size_t at = 0;
    while (at < s.len && is_space(s.data[at])) {
        at++;
    }
    if (at < s.len && (s.data[at] == '*' || s.data[at] == '(')) {
        scan->unsure = true;
        scan->count++;
        return;
    }
    if (at == s.len || s.data[at] != '=') {
        return;
    }
    at++;
    while (at < s.len && is_space(s.data[at])) {
        at++;
    }
    bool quoted = at < s.len && s.data[at] == '"';
    at += quoted ? 1 : 0;
    size_t start = at;
    while (at < s.len && s.data[at] != '\r' && s.data[at] != '\n' && s.data[at] != '\\' &&
           (quoted ? s.data[at] != '"' : !is_space(s.data[at]) && s.data[at] != ';')) {
        at++;
    }
    struct span value = span_trim(span_make(s.data + start, at - start));
    bool plain = quoted ? at < s.len && s.data[at] == '"' : at == s.len || s.data[at] != '\\';
    if (!plain || span_search(value, SPAN_LIT("=?")) < value.len ||
        span_find(value, '(') < value.len) {
        scan->unsure = true;
        scan->count++;
    }
    boundary_add(scan, value);
}

static void boundaries_collect(struct boundary_scan *scan, struct span message)
{
    static const char word[] = "boundary";
    const size_t len = sizeof(word) - 1;
    for (size_t i = 0; i + len < message.len; i++) {
        if ((message.data[i] | 0x20) == 'b' &&
            span_ieq(span_make(message.data + i, len), span_make(word, len))) {
            i += len;
            boundary_read(scan, span_make(message.data + i, message.len - i));
        }
    }
}

static void delimiters_count(struct boundary_scan *scan, struct span message)
{
    while (message.len > 0) {
        struct span line = span_cut(&message, '\n');
        if (line.len < 2 || line.data[0] != '-' || line.data[1] != '-') {
            continue;
        }
        scan->dash_lines++;
        line = span_trim(span_make(line.data + 2, line.len - 2));
        if (boundary_known(scan, line) ||
            (span_ends(line, SPAN_LIT("--")) &&
             boundary_known(scan, span_make(line.data, line.len - 2)))) {
            scan->delimiters++;
        }
    }
}

/* ---- How deep reading will go ---- */

/* GMime's address parser calls itself for each group inside a group ("a:b:c:"), so a list made of
 * colons would take the whole stack of a thread. No honest list has this many. */
#define ADDRESS_COLONS_MAX ((size_t)1000)

/* Whether the line begins a field that GMime reads as a list of addresses; so do the headers of
 * enclosed messages, which stand anywhere. */
static bool begins_addresses(struct span line)
{
    static const char *const names[] = {"From", "Sender", "Reply-To", "To", "Cc", "Bcc"};
    struct span value = line;
    struct span name = span_trim(span_cut(&value, ':'));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (span_ieq(name, span_of(names[i]))) {
            return true;
        }
    }
    return false;
}

static size_t colons_of(struct span line)
{
    size_t count = 0;
    while (line.len > 0) {
        size_t at = span_find(line, ':');
        count += at < line.len ? 1 : 0;
        size_t done = at < line.len ? at + 1 : at;
        line = span_make(line.data + done, line.len - done);
    }
    return count;
}

static bool addresses_too_deep(struct span message)
{
    size_t colons = 0;
    bool inside = false;
    while (message.len > 0) {
        struct span line = span_cut(&message, '\n');
        bool folded = line.len > 0 && (line.data[0] == ' ' || line.data[0] == '\t');
        if (!folded || !inside) {
            inside = begins_addresses(line);
            colons = 0;
        }
        colons += inside ? colons_of(line) : 0;
        if (colons > ADDRESS_COLONS_MAX) {
            return true;
        }
    }
    return false;
}

int mime_affordable(struct span message, struct err *err)
{
    if (addresses_too_deep(message)) {
        return err_set(err, ERR_LIMIT, "An address field of the message has more than %zu groups.",
                       ADDRESS_COLONS_MAX);
    }
    struct boundary_scan *scan = mem_zero(sizeof(*scan));
    boundaries_collect(scan, message);
    delimiters_count(scan, message);
    bool ok = scan->count <= BOUNDARIES_MAX && scan->delimiters <= DELIMITERS_MAX &&
              (!scan->unsure || scan->dash_lines <= DASH_LINES_UNSURE_MAX) &&
              scan->dash_lines * (scan->count + 1) <= COMPARISONS_MAX;
    mem_free(scan);
    if (!ok) {
        return err_set(err, ERR_LIMIT,
                       "The message has more MIME parts than can be taken apart (%d).",
                       MIME_PARTS_MAX);
    }
    return 0;
}

/* ---- Encoded words (RFC 2047) ---- */

struct encoded_word {
    struct span charset;
    char encoding; /* 'B' or 'Q' as written */
    struct span text;
    size_t len; /* of the whole word */
};

/* Whether `s` starts with an encoded word. */
static bool encoded_word_read(struct span s, struct encoded_word *out)
{
    if (!span_starts(s, SPAN_LIT("=?"))) {
        return false;
    }
    struct span rest = span_make(s.data + 2, s.len - 2);
    struct span charset = span_cut(&rest, '?');
    if (charset.len == 0 || charset.len > 80 || rest.len < 2 || rest.data[1] != '?') {
        return false;
    }
    char encoding = rest.data[0];
    rest = span_make(rest.data + 2, rest.len - 2);
    size_t text = span_find(rest, '?');
    if (text + 1 >= rest.len || rest.data[text + 1] != '=') {
        return false;
    }
    *out = (struct encoded_word){
        .charset = charset,
        .encoding = encoding,
        .text = span_make(rest.data, text),
        .len = (size_t)(rest.data + text + 2 - s.data),
    };
    return true;
}

static bool is_base64(const struct encoded_word *word)
{
    return word->encoding == 'B' || word->encoding == 'b';
}

/* The base64 word in the Q encoding; as it was when its base64 is broken. */
static int put_as_q(const struct encoded_word *word, struct span whole, struct buf *out)
{
    struct buf bytes;
    buf_init(&bytes, word->text.len + 4);
    int status = codec_base64_decode(word->text, true, &bytes);
    if (status == ERR_INVAL) {
        buf_release(&bytes);
        return buf_append(out, whole);
    }
    if (status == 0) {
        status = buf_printf(out, "=?%.*s?Q?", SPAN_FMT(word->charset));
    }
    struct span s = buf_span(&bytes);
    for (size_t i = 0; i < s.len && status == 0; i++) {
        status = buf_printf(out, "=%02X", (unsigned)(unsigned char)s.data[i]);
    }
    if (status == 0) {
        status = buf_append(out, SPAN_LIT("?="));
    }
    buf_release(&bytes);
    return status;
}

int mime_words_repair(struct span value, struct buf *out)
{
    bool after_padded = false; /* only white space since a base64 word that ended in padding */
    int status = 0;
    while (value.len > 0 && status == 0) {
        struct encoded_word word;
        if (encoded_word_read(value, &word)) {
            struct span whole = span_make(value.data, word.len);
            bool rewrite = after_padded && is_base64(&word);
            status = rewrite ? put_as_q(&word, whole, out) : buf_append(out, whole);
            after_padded = !rewrite && is_base64(&word) && span_ends(word.text, SPAN_LIT("="));
            value = span_make(value.data + word.len, value.len - word.len);
            continue;
        }
        after_padded = after_padded && is_space(value.data[0]);
        status = buf_append_byte(out, value.data[0]);
        value = span_make(value.data + 1, value.len - 1);
    }
    return status;
}
