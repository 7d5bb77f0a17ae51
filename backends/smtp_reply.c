#include "backends/smtp_reply.h"

void smtp_reply_reset(struct smtp_reply *reply)
{
    reply->code = 0;
    reply->lines = 0;
    reply->len = 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* "250-text" or "250 text" or "250". Returns the code, or 0. */
static uint32_t line_code(struct span line)
{
    if (line.len < 3 || line.data[0] < '2' || line.data[0] > '5' || !is_digit(line.data[1]) ||
        !is_digit(line.data[2])) {
        return 0;
    }
    if (line.len > 3 && line.data[3] != ' ' && line.data[3] != '-') {
        return 0;
    }
    return (uint32_t)((line.data[0] - '0') * 100 + (line.data[1] - '0') * 10 + line.data[2] - '0');
}

/* Length of "5.7.1 " when `text` begins with an enhanced status code (RFC 2034), else 0. */
static size_t enhanced_length(struct span text)
{
    size_t at = 0;
    size_t dots = 0;
    while (at < text.len && (is_digit(text.data[at]) || text.data[at] == '.')) {
        dots += text.data[at] == '.';
        at++;
    }
    return dots == 2 && at < text.len && text.data[at] == ' ' ? at + 1 : 0;
}

static void text_append(struct smtp_reply *reply, struct span text)
{
    for (size_t i = 0; i < text.len && reply->len < sizeof reply->text; i++) {
        unsigned char c = (unsigned char)text.data[i];
        reply->text[reply->len++] = c < 32 || c == 127 ? '?' : (char)c;
    }
}

static void add_line(struct smtp_reply *reply, struct span text)
{
    if (reply->lines > 0) {
        size_t prefix = enhanced_length(smtp_reply_text(reply));
        if (prefix > 0 && span_starts(text, span_make(reply->text, prefix))) {
            text = span_make(text.data + prefix, text.len - prefix);
        }
        text_append(reply, SPAN_LIT(" "));
    }
    text_append(reply, text);
    reply->lines++;
}

int smtp_reply_step(struct smtp_reply *reply, struct span *bytes, struct span *out_line)
{
    size_t end = span_find(*bytes, '\n');
    if (end > SMTP_REPLY_LINE_MAX) {
        return ERR_PROTO;
    }
    if (end == bytes->len) {
        return SMTP_REPLY_NEED;
    }
    struct span line = span_make(bytes->data, end);
    *bytes = span_make(bytes->data + end + 1, bytes->len - end - 1);
    if (line.len > 0 && line.data[line.len - 1] == '\r') {
        line.len--;
    }
    uint32_t code = line_code(line);
    if (code == 0 || (reply->code != 0 && reply->code != code) ||
        reply->lines >= SMTP_REPLY_LINES_MAX) {
        return ERR_PROTO;
    }
    reply->code = code;
    struct span text = line.len > 4 ? span_make(line.data + 4, line.len - 4)
                                    : span_make(line.data + line.len, 0);
    add_line(reply, text);
    *out_line = text;
    return line.len > 3 && line.data[3] == '-' ? SMTP_REPLY_LINE : SMTP_REPLY_LAST;
}
