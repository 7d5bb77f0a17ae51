#include "queue/fields.h"

#include "gateway/base/codec.h"

#include <arpa/inet.h>

/* Invariant of every scan here: a cursor only moves forward and each byte is looked at a bounded
 * number of times, so that hostile input costs no more than its length. Lines end at LF; the CR
 * before it belongs to the line end. Intake refuses bare LF, but a stored or spooled message may
 * hold anything. */

static bool is_wsp(char c)
{
    return c == ' ' || c == '\t';
}

static bool is_space(char c)
{
    return is_wsp(c) || c == '\r' || c == '\n';
}

/* ---- Fields ---- */

/* Length of the line `s` starts with, its LF included. */
static size_t line_length(struct span s)
{
    size_t at = span_find(s, '\n');
    return at < s.len ? at + 1 : s.len;
}

static struct span span_from(struct span s, size_t at)
{
    return span_make(s.data + at, s.len - at);
}

/* Length of the field name the line starts with (RFC 5322 3.6.8 ftext), or 0 when it is no field.
 * White space before the colon is obsolete syntax (4.5) that real mail still has. */
static size_t name_length(struct span line, size_t *out_colon)
{
    size_t len = 0;
    while (len < line.len && line.data[len] > 32 && line.data[len] < 127 && line.data[len] != ':') {
        len++;
    }
    size_t colon = len;
    while (colon < line.len && is_wsp(line.data[colon])) {
        colon++;
    }
    if (len == 0 || colon >= line.len || line.data[colon] != ':') {
        return 0;
    }
    *out_colon = colon;
    return len;
}

/* Without one line end at the end. */
static struct span without_line_end(struct span s)
{
    if (s.len > 0 && s.data[s.len - 1] == '\n') {
        s.len--;
        if (s.len > 0 && s.data[s.len - 1] == '\r') {
            s.len--;
        }
    }
    return s;
}

bool fields_next(struct span *header, struct field *out)
{
    size_t colon = 0;
    size_t len = line_length(*header);
    size_t name = name_length(span_make(header->data, len), &colon);
    if (name == 0) {
        return false;
    }
    while (len < header->len && is_wsp(header->data[len])) {
        len += line_length(span_from(*header, len));
    }
    struct span whole = span_make(header->data, len);
    *out = (struct field){
        .whole = whole,
        .name = span_make(whole.data, name),
        .value = without_line_end(span_from(whole, colon + 1)),
    };
    *header = span_from(*header, len);
    return true;
}

void fields_split(struct span message, struct span *out_header, struct span *out_rest)
{
    struct span rest = message;
    struct field field;
    while (fields_next(&rest, &field)) {
    }
    *out_header = span_make(message.data, message.len - rest.len);
    *out_rest = rest;
}

bool fields_find(struct span header, struct span name, struct field *out)
{
    struct field field;
    while (fields_next(&header, &field)) {
        if (span_ieq(field.name, name)) {
            *out = field;
            return true;
        }
    }
    return false;
}

size_t fields_count(struct span header, struct span name)
{
    size_t count = 0;
    struct field field;
    while (fields_next(&header, &field)) {
        if (span_ieq(field.name, name)) {
            count++;
        }
    }
    return count;
}

int fields_unfold(struct span value, struct buf *out)
{
    struct span rest = span_trim(value);
    while (rest.len > 0) {
        size_t run = 0;
        while (run < rest.len && rest.data[run] != '\r' && rest.data[run] != '\n') {
            run++;
        }
        int rc = buf_append(out, span_make(rest.data, run));
        if (rc != 0) {
            return rc;
        }
        while (run < rest.len && (rest.data[run] == '\r' || rest.data[run] == '\n')) {
            run++;
        }
        rest = span_from(rest, run);
    }
    return 0;
}

static bool name_listed(struct span name, const char *const *names, size_t name_count)
{
    for (size_t i = 0; i < name_count; i++) {
        struct span wanted = span_of(names[i]);
        if (wanted.len > 0 && wanted.data[wanted.len - 1] == '*') {
            if (span_istarts(name, span_make(wanted.data, wanted.len - 1))) {
                return true;
            }
        } else if (span_ieq(name, wanted)) {
            return true;
        }
    }
    return false;
}

int fields_copy_without(struct span header, const char *const *names, size_t name_count,
                        struct buf *out)
{
    struct span rest = header;
    const char *kept = header.data; /* start of the run that is copied in one piece */
    struct field field;
    while (fields_next(&rest, &field)) {
        if (name_listed(field.name, names, name_count)) {
            int rc = buf_append(out, span_make(kept, (size_t)(field.whole.data - kept)));
            if (rc != 0) {
                return rc;
            }
            kept = rest.data;
        }
    }
    /* What follows the last field (nothing after fields_split) is not ours to judge. */
    return buf_append(out, span_make(kept, header.len - (size_t)(kept - header.data)));
}

/* ---- Address lists ---- */

/* Index behind the quoted string, comment or domain literal that starts at `at`; s.len when it is
 * not closed. Comments nest (RFC 5322 3.2.2); a depth counter instead of recursion. */
static size_t skip_enclosed(struct span s, size_t at)
{
    char open = s.data[at];
    char close = open == '"' ? '"' : open == '(' ? ')' : ']';
    size_t depth = 0;
    for (; at < s.len; at++) {
        char c = s.data[at];
        if (c == '\\' && at + 1 < s.len) {
            at++;
        } else if (c == close && (depth == 1 || open != '(') && depth > 0) {
            return at + 1;
        } else if (c == close && open == '(') {
            depth--;
        } else if (c == open && (open == '(' || depth == 0)) {
            depth++;
        }
    }
    return s.len;
}

static bool opens_enclosed(char c)
{
    return c == '"' || c == '(' || c == '[';
}

/* What one pass over an entry finds: where it ends, and its angle brackets. Offsets into the list.
 */
struct entry {
    size_t start; /* behind the group name, when there was one */
    size_t end;   /* the separator, or the length of the list */
    size_t angle_open;
    size_t angle_close;
    bool has_angle;
};

static struct entry entry_scan(struct span list)
{
    struct entry entry = {.end = list.len};
    bool in_angle = false;
    size_t at = 0;
    while (at < list.len) {
        char c = list.data[at];
        if (opens_enclosed(c)) {
            at = skip_enclosed(list, at);
            continue;
        }
        if (c == '<' && !in_angle) {
            entry.angle_open = at;
            entry.angle_close = list.len;
            entry.has_angle = true;
            in_angle = true;
        } else if (c == '>' && in_angle) {
            entry.angle_close = at;
            in_angle = false;
        } else if (c == ':' && !in_angle) {
            entry.start = at + 1; /* the name of a group (3.4) */
            entry.has_angle = false;
        } else if ((c == ',' || c == ';') && !in_angle) {
            entry.end = at;
            break;
        }
        at++;
    }
    return entry;
}

/* Length of `s` without comments and without white space outside quotes; copies to `out` when it is
 * not NULL.
 * `*out_comment` receives the inside of the last comment. */
static size_t clean_address(struct span s, char *out, struct span *out_comment)
{
    size_t len = 0;
    size_t at = 0;
    while (at < s.len) {
        size_t next = opens_enclosed(s.data[at]) ? skip_enclosed(s, at) : at + 1;
        if (s.data[at] == '(') {
            size_t inside = next - at - (s.data[next - 1] == ')' && next - at > 1 ? 2 : 1);
            *out_comment = span_trim(span_make(s.data + at + 1, inside));
        } else if (!is_space(s.data[at])) {
            if (out != NULL) {
                memcpy(out + len, s.data + at, next - at);
            }
            len += next - at;
        }
        at = next;
    }
    return len;
}

/* Drops an obsolete source route "@a,@b:" (RFC 5322 4.4). */
static struct span without_route(struct span s)
{
    s = span_trim(s);
    if (s.len > 0 && s.data[0] == '@') {
        size_t colon = span_find(s, ':');
        if (colon < s.len) {
            return span_from(s, colon + 1);
        }
    }
    return s;
}

static bool has_any(struct span s, const char *bytes)
{
    for (size_t i = 0; i < s.len; i++) {
        if (s.data[i] != '\0' && strchr(bytes, s.data[i]) != NULL) {
            return true;
        }
    }
    return false;
}

/* Less strict than address_valid(): what a From field of real mail may hold, but nothing that came
 * of a quote or bracket that was never closed. */
static bool looks_like_address(struct span s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c < 32 || c == 127) {
            return false;
        }
    }
    struct span local = address_local(s);
    struct span domain = address_domain(s);
    if (local.len == 0 || domain.len == 0) {
        return false;
    }
    bool quoted = local.len > 2 && local.data[0] == '"' && local.data[local.len - 1] == '"';
    bool literal = domain.data[0] == '[' && domain.data[domain.len - 1] == ']';
    return (quoted || !has_any(local, " \"<>,;:()[]\\")) &&
           (literal || !has_any(domain, " \"<>,;:()[]\\"));
}

/* Reads the entry of `list` between its bounds. False when it is no mailbox or memory is gone. */
static bool entry_read(struct span list, const struct entry *entry, struct arena *arena,
                       struct mailbox *out)
{
    struct span whole = span_trim(span_make(list.data + entry->start, entry->end - entry->start));
    struct span raw = whole;
    struct span display = {.data = whole.data};
    if (entry->has_angle) {
        size_t close = entry->angle_close < entry->end ? entry->angle_close : entry->end;
        raw = without_route(
            span_make(list.data + entry->angle_open + 1, close - entry->angle_open - 1));
        display = span_trim(span_make(list.data + entry->start, entry->angle_open - entry->start));
    }
    struct span comment = {.data = whole.data};
    size_t len = clean_address(raw, NULL, &comment);
    struct span address = span_trim(raw);
    if (len != address.len) {
        char *copy = arena_alloc(arena, len + 1);
        if (copy == NULL) {
            return false;
        }
        (void)clean_address(raw, copy, &comment); /* the length is known */
        address = span_make(copy, len);
    }
    if (!looks_like_address(address)) {
        return false;
    }
    *out = (struct mailbox){
        .display = entry->has_angle ? display : comment,
        .address = address,
        .whole = whole,
    };
    return true;
}

bool mailbox_next(struct span *list, struct arena *arena, struct mailbox *out)
{
    while (list->len > 0) {
        struct span rest = *list;
        struct entry entry = entry_scan(rest);
        *list = span_from(rest, entry.end < rest.len ? entry.end + 1 : rest.len);
        if (entry_read(rest, &entry, arena, out)) {
            return true;
        }
    }
    return false;
}

/* ---- Addresses ---- */

static size_t last_at(struct span address)
{
    for (size_t i = address.len; i > 0; i--) {
        if (address.data[i - 1] == '@') {
            return i - 1;
        }
    }
    return address.len;
}

struct span address_domain(struct span address)
{
    size_t at = last_at(address);
    return at < address.len ? span_from(address, at + 1) : span_make(address.data, 0);
}

struct span address_local(struct span address)
{
    return span_make(address.data, last_at(address));
}

bool address_same(struct span a, struct span b)
{
    return span_ieq(a, b);
}

static bool is_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool is_high(char c)
{
    return (unsigned char)c > 127;
}

/* RFC 5322 3.2.3 atext. */
static bool is_atext(char c)
{
    return is_alnum(c) || (c != '\0' && strchr("!#$%&'*+-/=?^_`{|}~", c) != NULL);
}

static bool dot_atom_valid(struct span s, bool allow_utf8)
{
    bool dot_before = true; /* no dot first, last, or twice */
    for (size_t i = 0; i < s.len; i++) {
        char c = s.data[i];
        if (c == '.') {
            if (dot_before) {
                return false;
            }
            dot_before = true;
        } else if (is_atext(c) || (allow_utf8 && is_high(c))) {
            dot_before = false;
        } else {
            return false;
        }
    }
    return !dot_before;
}

/* RFC 5321 4.1.2 Quoted-string. */
static bool quoted_valid(struct span s, bool allow_utf8)
{
    if (s.len < 3 || s.data[0] != '"' || s.data[s.len - 1] != '"') {
        return false;
    }
    for (size_t i = 1; i < s.len - 1; i++) {
        char c = s.data[i];
        if (c == '\\') {
            i++;
            if (i >= s.len - 1 || s.data[i] < 32 || s.data[i] > 126) {
                return false;
            }
        } else if (c == '"' || (is_high(c) ? !allow_utf8 : c < 32 || c > 126)) {
            return false;
        }
    }
    return true;
}

/* RFC 5321 4.1.3: [192.0.2.1] and [IPv6:2001:db8::1]. */
static bool literal_valid(struct span s)
{
    char text[INET6_ADDRSTRLEN];
    unsigned char parsed[16];
    struct span inside = span_make(s.data + 1, s.len - 2);
    int family = AF_INET;
    if (span_istarts(inside, SPAN_LIT("IPv6:"))) {
        inside = span_from(inside, 5);
        family = AF_INET6;
    }
    if (inside.len >= sizeof text) {
        return false;
    }
    memcpy(text, inside.data, inside.len);
    text[inside.len] = '\0';
    return inet_pton(family, text, parsed) == 1;
}

/* Labels of letters, digits, hyphens inside, and underscores, which no standard allows and real
 * host names of scanners have. */
static bool domain_valid(struct span s, bool allow_utf8)
{
    if (s.len == 0 || s.len > 255) {
        return false;
    }
    if (s.len > 2 && s.data[0] == '[' && s.data[s.len - 1] == ']') {
        return literal_valid(s);
    }
    for (;;) {
        size_t len = span_find(s, '.');
        if (len == 0 || len > 63 || s.data[0] == '-' || s.data[len - 1] == '-') {
            return false;
        }
        for (size_t i = 0; i < len; i++) {
            char c = s.data[i];
            if (!is_alnum(c) && c != '-' && c != '_' && !(allow_utf8 && is_high(c))) {
                return false;
            }
        }
        if (len == s.len) {
            return true;
        }
        s = span_from(s, len + 1);
    }
}

bool address_valid(struct span address, bool allow_utf8)
{
    struct span local = address_local(address);
    if (local.len == 0 || local.len > 64 || local.len == address.len) {
        return false;
    }
    if (allow_utf8 && !codec_utf8_valid(address)) {
        return false;
    }
    bool local_ok = local.data[0] == '"' ? quoted_valid(local, allow_utf8)
                                         : dot_atom_valid(local, allow_utf8);
    return local_ok && domain_valid(address_domain(address), allow_utf8);
}

/* ---- Encoded words (RFC 2047) ---- */

/* A word has at most 75 characters: 12 of frame, 60 of base64, so 45 bytes. The first is shorter
 * because the field name stands before it on the line of at most 76. */
#define WORD_BYTES 45
#define FIRST_WORD_BYTES 30
/* A plain line may have 998 (RFC 5322 2.1.1); the name needs some of them. */
#define PLAIN_MAX 900

static bool plain_text(struct span s)
{
    for (size_t i = 0; i < s.len; i++) {
        if (s.data[i] < 32 || s.data[i] > 126) {
            return false;
        }
    }
    return s.len <= PLAIN_MAX && span_search(s, SPAN_LIT("=?")) == s.len;
}

/* Takes whole characters of at most `room` bytes off `*rest` into `word`; a byte that is no UTF-8
 * becomes '?', so that the word decodes everywhere. */
static size_t take_word(struct span *rest, size_t room, char *word)
{
    size_t len = 0;
    while (rest->len > 0) {
        size_t step = codec_utf8_step(*rest);
        size_t bytes = step > 0 ? step : 1;
        if (len + bytes > room) {
            break;
        }
        if (step > 0) {
            memcpy(word + len, rest->data, bytes);
        } else {
            word[len] = '?';
        }
        len += bytes;
        *rest = span_from(*rest, bytes);
    }
    return len;
}

int fields_encode_text(struct span utf8, struct buf *out)
{
    if (plain_text(utf8)) {
        return buf_append(out, utf8);
    }
    size_t room = FIRST_WORD_BYTES;
    while (utf8.len > 0) {
        char word[WORD_BYTES];
        size_t len = take_word(&utf8, room, word);
        int rc = buf_append(out, room == WORD_BYTES ? SPAN_LIT("\r\n =?UTF-8?B?")
                                                    : SPAN_LIT("=?UTF-8?B?"));
        if (rc == 0) {
            rc = codec_base64_encode(span_make(word, len), 0, out);
        }
        if (rc == 0) {
            rc = buf_append(out, SPAN_LIT("?="));
        }
        if (rc != 0) {
            return rc;
        }
        room = WORD_BYTES;
    }
    return 0;
}
