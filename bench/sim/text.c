#include "bench/sim/text.h"

#include "gateway/base/codec.h"

#define ADDRESS_MAX 1000

static int json_escape(struct buf *out, unsigned char byte)
{
    switch (byte) {
    case '"':
        return buf_append(out, SPAN_LIT("\\\""));
    case '\\':
        return buf_append(out, SPAN_LIT("\\\\"));
    case '\n':
        return buf_append(out, SPAN_LIT("\\n"));
    case '\r':
        return buf_append(out, SPAN_LIT("\\r"));
    case '\t':
        return buf_append(out, SPAN_LIT("\\t"));
    default:
        return buf_printf(out, "\\u%04x", byte);
    }
}

int text_json(struct buf *out, struct span text)
{
    int result = buf_append_byte(out, '"');
    size_t i = 0;
    while (result == 0 && i < text.len) {
        size_t plain = i;
        while (plain < text.len && (unsigned char)text.data[plain] >= 32 &&
               (unsigned char)text.data[plain] < 127 && text.data[plain] != '"' &&
               text.data[plain] != '\\') {
            plain++;
        }
        if (plain > i) {
            result = buf_append(out, span_make(text.data + i, plain - i));
            i = plain;
            continue;
        }
        unsigned char byte = (unsigned char)text.data[i];
        size_t step = codec_utf8_step(span_make(text.data + i, text.len - i));
        if (byte < 128) {
            result = json_escape(out, byte);
            step = 1;
        } else if (step == 0) {
            result = buf_append_byte(out, '?');
            step = 1;
        } else {
            result = buf_append(out, span_make(text.data + i, step));
        }
        i += step;
    }
    return result == 0 ? buf_append_byte(out, '"') : result;
}

/* The length of the first line with its end, or what there is. */
static size_t line_length(struct span text)
{
    size_t end = span_find(text, '\n');
    return end < text.len ? end + 1 : text.len;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

bool text_next_field(struct span *rest, struct span *out_name, struct span *out_value)
{
    size_t len = line_length(*rest);
    if (span_trim(span_make(rest->data, len)).len == 0) {
        return false;
    }
    while (len < rest->len && is_blank(rest->data[len])) {
        len += line_length(span_make(rest->data + len, rest->len - len));
    }
    struct span value = span_make(rest->data, len);
    *out_name = span_trim(span_cut(&value, ':'));
    *out_value = span_trim(value);
    *rest = span_make(rest->data + len, rest->len - len);
    return true;
}

struct span text_header(struct span message, const char *name)
{
    struct span field = {0};
    struct span value = {0};
    while (message.len > 0 && text_next_field(&message, &field, &value)) {
        if (span_ieq(field, span_of(name))) {
            return value;
        }
    }
    return (struct span){0};
}

/* One element of an address list, collected without comments and quoted display names. */
struct collector {
    char text[ADDRESS_MAX];
    size_t len;
    bool in_angle;
    bool had_angle;
    bool too_long;
};

static void collect(struct collector *c, char byte)
{
    if (c->len == sizeof(c->text)) {
        c->too_long = true;
        return;
    }
    c->text[c->len++] = byte;
}

static int finish_element(struct collector *c, int (*fn)(void *ctx, struct span address), void *ctx)
{
    struct span address = span_trim(span_make(c->text, c->len));
    bool usable = !c->too_long && span_find(address, '@') < address.len;
    int result = usable ? fn(ctx, address) : 0; /* `address` points into `c` */
    *c = (struct collector){0};
    return result;
}

/* `list` stands at a quote: the length of the quoted string with both quotes. */
static size_t quoted_length(struct span list)
{
    size_t i = 1;
    while (i < list.len && list.data[i] != '"') {
        i += list.data[i] == '\\' ? 2 : 1;
    }
    return i < list.len ? i + 1 : list.len;
}

/* `list` stands at '(': the length of the comment, nested ones included. */
static size_t comment_length(struct span list)
{
    size_t depth = 0;
    size_t i = 0;
    while (i < list.len) {
        if (list.data[i] == '\\') {
            i++;
        } else if (list.data[i] == '(') {
            depth++;
        } else if (list.data[i] == ')' && --depth == 0) {
            return i + 1;
        }
        i++;
    }
    return list.len;
}

/* Handles one byte that is not the start of a quoted string or comment. */
static int take_byte(struct collector *c, char byte, int (*fn)(void *ctx, struct span address),
                     void *ctx)
{
    if (byte == '<') {
        c->len = 0;
        c->in_angle = true;
        c->had_angle = true;
    } else if (byte == '>') {
        c->in_angle = false;
    } else if (!c->in_angle && (byte == ',' || byte == ';')) {
        return finish_element(c, fn, ctx);
    } else if (!c->in_angle && byte == ':') {
        c->len = 0; /* a group's name */
    } else if (!(c->had_angle && !c->in_angle)) {
        collect(c, byte);
    }
    return 0;
}

int text_each_address(struct span list, int (*fn)(void *ctx, struct span address), void *ctx)
{
    struct collector c = {0};
    size_t i = 0;
    while (i < list.len) {
        struct span rest = span_make(list.data + i, list.len - i);
        size_t step = 1;
        if (rest.data[0] == '"') {
            step = quoted_length(rest);
            for (size_t k = 0; k < step && (!c.had_angle || c.in_angle); k++) {
                collect(&c, rest.data[k]);
            }
        } else if (rest.data[0] == '(') {
            step = comment_length(rest);
        } else {
            int result = take_byte(&c, rest.data[0], fn, ctx);
            if (result != 0) {
                return result;
            }
        }
        i += step;
    }
    return finish_element(&c, fn, ctx);
}

struct first {
    char *room;
    size_t room_bytes;
    size_t len;
};

static int take_first(void *ctx, struct span address)
{
    struct first *first = ctx;
    if (address.len <= first->room_bytes) {
        memcpy(first->room, address.data, address.len);
        first->len = address.len;
    }
    return 1; /* no more */
}

struct span text_first_address(struct span list, char *room, size_t room_bytes)
{
    struct first first = {.room = room, .room_bytes = room_bytes};
    (void)text_each_address(list, take_first, &first); /* 0 and 1 both leave first.len right */
    return span_make(room, first.len);
}

bool text_is_address(struct span address)
{
    size_t at = address.len;
    bool quoted = false;
    for (size_t i = 0; i < address.len; i++) {
        unsigned char byte = (unsigned char)address.data[i];
        if (byte == '"') {
            quoted = !quoted;
        } else if (byte < 32 || byte == 127 ||
                   (!quoted && (byte == ' ' || byte == '<' || byte == '>' || byte == ','))) {
            return false;
        } else if (byte == '@' && !quoted) {
            if (at != address.len) {
                return false;
            }
            at = i;
        }
    }
    return !quoted && at > 0 && at + 1 < address.len;
}
