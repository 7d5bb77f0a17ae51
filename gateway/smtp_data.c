/* The reader of DATA. What must stay true, for it is what keeps smuggling out:
 *
 *   - the end of data is a '.' at SMTP_PLACE_START followed by CR LF, and nothing else;
 *   - only a real CR LF leads to SMTP_PLACE_START;
 *   - what is kept holds no CR without LF, no LF without CR, and no NUL.
 *
 * It works on runs of bytes found with memchr and copies each run once. */
#include "gateway/smtp_machine.h"

/* Believing SIZE= saves growing step by step; believing it without bound would let a peer take
 * memory with one line. */
#define RESERVE_MAX ((uint64_t)1 << 20)

void smtp_data_init(struct smtp_data *data, size_t max_bytes, uint64_t declared_bytes, bool repair)
{
    *data = (struct smtp_data){
        .repair = repair, .place = SMTP_PLACE_START, .tail = {0, 0, 0x0d, 0x0a}};
    buf_init(&data->body, max_bytes);
    size_t reserve = (size_t)(declared_bytes < RESERVE_MAX ? declared_bytes : RESERVE_MAX);
    char *room = NULL;
    if (reserve > 0 && reserve <= max_bytes &&
        buf_reserve(&data->body, reserve, &room) == ERR_NOMEM) {
        smtp_data_spoil(data, SMTP_DEFECT_NO_MEMORY);
    }
}

void smtp_data_release(struct smtp_data *data)
{
    buf_release(&data->body);
}

void smtp_data_spoil(struct smtp_data *data, enum smtp_defect defect)
{
    if (data->defect < defect) {
        data->defect = defect;
        buf_release(&data->body);
    }
}

static void keep(struct smtp_data *data, struct span run)
{
    if (data->defect != SMTP_DEFECT_NONE || run.len == 0) {
        return;
    }
    int rc = buf_append(&data->body, run);
    if (rc != ERR_OK) {
        smtp_data_spoil(data, rc == ERR_LIMIT ? SMTP_DEFECT_TOO_LARGE : SMTP_DEFECT_NO_MEMORY);
    }
}

/* One pass over the bytes at hand: [run, at) is looked at and waits to be copied. */
struct scan {
    struct smtp_data *data;
    struct span in;
    size_t run;
    size_t at;
    size_t next_lf; /* first LF at or after `at`, in.len when there is none: found once, so that a
                     * line of bare CRs costs no more than any other */
    bool end;
};

static void keep_run(struct scan *s)
{
    keep(s->data, span_make(s->in.data + s->run, s->at - s->run));
    s->run = s->at;
}

/* Passes over `count` bytes without keeping them. */
static void skip(struct scan *s, size_t count)
{
    keep_run(s);
    s->at += count;
    s->run = s->at;
}

static void broken_line_end(struct scan *s, bool more_cr_follow)
{
    if (!s->data->repair) {
        smtp_data_spoil(s->data, SMTP_DEFECT_LINE_END);
        s->at++;
        s->data->place = SMTP_PLACE_INSIDE;
        return;
    }
    skip(s, 1);
    if (!more_cr_follow) {
        keep(s->data, SPAN_LIT("\r\n"));
        s->data->place = SMTP_PLACE_SOFT;
    }
}

/* A '.' where a line begins. False: the next byte must be seen first. */
static bool take_dot(struct scan *s)
{
    size_t left = s->in.len - s->at;
    const char *dot = s->in.data + s->at;
    if (left < 2 || (dot[1] == '\r' && left < 3)) {
        return false;
    }
    if (s->data->place == SMTP_PLACE_SOFT) {
        skip(s, dot[1] == '.' ? 1 : 0);
    } else if (dot[1] == '\r' && dot[2] == '\n') {
        skip(s, 3);
        s->end = true;
    } else {
        skip(s, 1);
    }
    s->data->place = SMTP_PLACE_INSIDE;
    return true;
}

/* From inside a line to behind its end. False: the next byte must be seen first. */
static bool take_line(struct scan *s)
{
    if (s->next_lf < s->at) {
        s->next_lf = s->at + span_find(span_make(s->in.data + s->at, s->in.len - s->at), '\n');
    }
    size_t cr = s->at + span_find(span_make(s->in.data + s->at, s->next_lf - s->at), '\r');
    if (cr > s->at) {
        s->data->place = SMTP_PLACE_INSIDE;
    }
    s->at = cr;
    if (cr == s->in.len) {
        return true;
    }
    if (cr == s->next_lf) {
        broken_line_end(s, false);
        return true;
    }
    if (cr + 1 == s->in.len) {
        return false;
    }
    if (s->in.data[cr + 1] != '\n') {
        broken_line_end(s, s->in.data[cr + 1] == '\r');
        return true;
    }
    s->at = cr + 2;
    s->data->place = SMTP_PLACE_START;
    return true;
}

static void remember_tail(struct smtp_data *data, struct span taken)
{
    size_t room = sizeof data->tail;
    size_t fresh = taken.len < room ? taken.len : room;
    memmove(data->tail, data->tail + fresh, room - fresh);
    memcpy(data->tail + room - fresh, taken.data + taken.len - fresh, fresh);
}

size_t smtp_data_take(struct smtp_data *data, struct span bytes, bool *out_end)
{
    if (bytes.len == 0) {
        *out_end = false;
        return 0;
    }
    struct scan s = {.data = data, .in = bytes, .next_lf = span_find(bytes, '\n')};
    bool more = true;
    while (more && !s.end && s.at < bytes.len) {
        bool dot = data->place != SMTP_PLACE_INSIDE && bytes.data[s.at] == '.';
        more = dot ? take_dot(&s) : take_line(&s);
    }
    keep_run(&s);
    if (s.at > 0) {
        if (memchr(bytes.data, '\0', s.at) != NULL) {
            smtp_data_spoil(data, SMTP_DEFECT_NUL);
        }
        remember_tail(data, span_make(bytes.data, s.at));
    }
    data->received_bytes += s.at;
    *out_end = s.end;
    return s.at;
}

bool smtp_data_looks_ended(const struct smtp_data *data)
{
    const char *tail = data->tail;
    return memcmp(tail + 1, "\n.\n", 3) == 0 || memcmp(tail, "\n.\r\n", 4) == 0;
}
