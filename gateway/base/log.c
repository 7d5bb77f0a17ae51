#include "gateway/base/log.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>

/* A line is built here and leaves whole in one write(2), alone or with others of its thread; pipes
 * keep writes up to PIPE_BUF (4096) together, and files opened for appending any size. A field that
 * does not fit any more is left out and the line says so. */
#define LINE_BYTES 8192
#define VALUE_BYTES 400
/* Kept free for the note that fields were left out, the closing brace and the newline. */
#define TAIL_BYTES 32

struct line {
    char bytes[LINE_BYTES];
    size_t len;
    bool cut;
};

/* Lines a thread keeps until the end of its loop's turn: as many as one write to a pipe keeps
 * together. */
#define KEPT_BYTES 4096

static _Thread_local struct {
    char bytes[KEPT_BYTES];
    size_t len;
    bool collecting;
} kept;

/* The process-wide settings of log_configure(); relaxed, because a line written with the settings
 * of a moment ago does no harm. */
static atomic_int conf_level = LOG_INFO;
static atomic_int conf_form = LOG_FORM_TEXT;
static atomic_bool conf_full_addresses = false;

void log_configure(enum log_level level, enum log_form form, bool full_addresses)
{
    atomic_store_explicit(&conf_level, (int)level, memory_order_relaxed);
    atomic_store_explicit(&conf_form, (int)form, memory_order_relaxed);
    atomic_store_explicit(&conf_full_addresses, full_addresses, memory_order_relaxed);
}

bool log_wants(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&conf_level, memory_order_relaxed);
}

static const char *level_name(enum log_level level)
{
    switch (level) {
    case LOG_DEBUG:
        return "debug";
    case LOG_INFO:
        return "info";
    case LOG_WARN:
        return "warn";
    case LOG_ERROR:
        return "error";
    }
    UNREACHABLE();
}

static void put(struct line *line, struct span s)
{
    if (line->cut || s.len > LINE_BYTES - TAIL_BYTES - line->len) {
        line->cut = true;
        return;
    }
    if (s.len > 0) {
        memcpy(line->bytes + line->len, s.data, s.len);
        line->len += s.len;
    }
}

/* One byte that may not stand in a line as it is: a control, a quote, or no UTF-8. */
static void put_escape(struct line *line, enum log_form form, unsigned char c)
{
    switch (c) {
    case '"':
        put(line, SPAN_LIT("\\\""));
        return;
    case '\\':
        put(line, SPAN_LIT("\\\\"));
        return;
    case '\n':
        put(line, SPAN_LIT("\\n"));
        return;
    case '\r':
        put(line, SPAN_LIT("\\r"));
        return;
    case '\t':
        put(line, SPAN_LIT("\\t"));
        return;
    default:
        break;
    }
    if (form == LOG_FORM_JSON && c >= 0x80) {
        /* JSON has no way to write a byte that is no character. */
        put(line, SPAN_LIT("\\ufffd"));
        return;
    }
    char hex[3];
    codec_hex(&c, 1, hex);
    put(line, form == LOG_FORM_JSON ? SPAN_LIT("\\u00") : SPAN_LIT("\\x"));
    put(line, span_make(hex, 2));
}

/* Unicode's own controls (C1, line separators, bidirectional marks) could forge or reorder what a
 * terminal shows. */
static bool is_sly(struct span character)
{
    const unsigned char *s = (const unsigned char *)character.data;
    if (character.len == 2) {
        return s[0] == 0xC2 && s[1] < 0xA0;
    }
    if (character.len != 3 || s[0] != 0xE2) {
        return false;
    }
    bool general = s[1] == 0x80 &&
                   ((s[2] >= 0x8B && s[2] <= 0x8F) || (s[2] >= 0xA8 && s[2] <= 0xAE));
    bool isolate = s[1] == 0x81 && s[2] >= 0xA0 && s[2] <= 0xAF;
    return general || isolate;
}

static bool is_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x7F && c != '"' && c != '\\';
}

/* The text with everything escaped, cut to VALUE_BYTES at a character. */
static void put_escaped(struct line *line, enum log_form form, struct span text)
{
    size_t at = 0;
    while (at < text.len && at < VALUE_BYTES) {
        struct span rest = {.data = text.data + at, .len = text.len - at};
        size_t step = codec_utf8_step(rest);
        struct span character = {.data = rest.data, .len = step};
        if ((step == 1 && is_plain((unsigned char)rest.data[0])) ||
            (step > 1 && !is_sly(character))) {
            put(line, character);
            at += step;
            continue;
        }
        size_t bad = step > 0 ? step : 1;
        for (size_t i = 0; i < bad; i++) {
            put_escape(line, form, (unsigned char)rest.data[i]);
        }
        at += bad;
    }
    if (at < text.len) {
        put(line, SPAN_LIT("..."));
    }
}

/* Whether a value can stand in a text line without quotes and still be told from its neighbours. */
static bool is_bare(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (!is_plain(c) || c == ' ' || c == '=') {
            return false;
        }
    }
    return text.len > 0 && text.len <= VALUE_BYTES;
}

static void put_value(struct line *line, enum log_form form, const struct log_field *field)
{
    if (field->type == LOG_FIELD_INT) {
        char number[CODEC_DECIMAL_MAX];
        put(line, codec_decimal(field->number, number));
        return;
    }
    if (form == LOG_FORM_TEXT && is_bare(field->text)) {
        put(line, field->text);
        return;
    }
    put(line, SPAN_LIT("\""));
    put_escaped(line, form, field->text);
    put(line, SPAN_LIT("\""));
}

/* A whole field or nothing of it. */
static void put_field(struct line *line, enum log_form form, const struct log_field *field)
{
    size_t before = line->len;
    if (form == LOG_FORM_JSON) {
        put(line, SPAN_LIT(",\""));
        put(line, span_of(field->key));
        put(line, SPAN_LIT("\":"));
    } else {
        put(line, SPAN_LIT(" "));
        put(line, span_of(field->key));
        put(line, SPAN_LIT("="));
    }
    put_value(line, form, field);
    if (line->cut) {
        line->len = before;
    }
}

static void put_head(struct line *line, enum log_form form, enum log_level level, const char *event)
{
    char time[CLOCK_TEXT_MAX];
    clock_rfc3339(clock_wall_ms(), time);
    bool json = form == LOG_FORM_JSON;
    put(line, json ? SPAN_LIT("{\"time\":\"") : SPAN_LIT(""));
    put(line, span_of(time));
    put(line, json ? SPAN_LIT("\",\"level\":\"") : SPAN_LIT(" "));
    put(line, span_of(level_name(level)));
    put(line, json ? SPAN_LIT("\",\"event\":\"") : SPAN_LIT(" "));
    put(line, span_of(event));
    put(line, json ? SPAN_LIT("\"") : SPAN_LIT(""));
}

static void put_tail(struct line *line, enum log_form form)
{
    bool json = form == LOG_FORM_JSON;
    struct span note = SPAN_LIT("");
    if (line->cut) {
        note = json ? SPAN_LIT(",\"cut\":true") : SPAN_LIT(" cut=true");
    }
    struct span end = json ? SPAN_LIT("}\n") : SPAN_LIT("\n");
    memcpy(line->bytes + line->len, note.data, note.len);
    line->len += note.len;
    memcpy(line->bytes + line->len, end.data, end.len);
    line->len += end.len;
}

/* Standard error is the last resort; where it fails there is nobody left to tell. */
static void write_out(const char *bytes, size_t len)
{
    while (write(STDERR_FILENO, bytes, len) < 0 && errno == EINTR) {
    }
}

void log_flush(void)
{
    if (kept.len > 0) {
        write_out(kept.bytes, kept.len);
        kept.len = 0;
    }
}

void log_collect(bool collecting)
{
    log_flush();
    kept.collecting = collecting;
}

static void give_out(const struct line *line)
{
    if (line->len > KEPT_BYTES - kept.len) {
        log_flush();
    }
    if (!kept.collecting || line->len > KEPT_BYTES) {
        write_out(line->bytes, line->len);
        return;
    }
    memcpy(kept.bytes + kept.len, line->bytes, line->len);
    kept.len += line->len;
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    if (!log_wants(level)) {
        return;
    }
    enum log_form form = (enum log_form)atomic_load_explicit(&conf_form, memory_order_relaxed);
    struct line line;
    line.len = 0;
    line.cut = false;
    put_head(&line, form, level, event);
    for (const struct log_field *field = fields; field->type != LOG_FIELD_END; field++) {
        if (field->type == LOG_FIELD_INT || field->text.len > 0) {
            put_field(&line, form, field);
        }
    }
    put_tail(&line, form);
    give_out(&line);
}

struct span log_address(struct span address, char *room, size_t room_bytes)
{
    size_t at = address.len;
    while (at > 0 && address.data[at - 1] != '@') {
        at--;
    }
    struct span local = {.data = address.data, .len = at > 0 ? at - 1 : address.len};
    struct span domain = {.data = address.data + local.len, .len = address.len - local.len};
    struct span stars = SPAN_LIT("");
    if (!atomic_load_explicit(&conf_full_addresses, memory_order_relaxed) && local.len > 0) {
        size_t first = codec_utf8_step(local);
        local.len = first > 0 ? first : 1;
        stars = SPAN_LIT("***");
    }
    const struct span parts[] = {local, stars, domain};
    size_t len = 0;
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        size_t fits = parts[i].len < room_bytes - len ? parts[i].len : room_bytes - len;
        if (fits > 0) {
            memcpy(room + len, parts[i].data, fits);
            len += fits;
        }
    }
    return span_make(room, len);
}
