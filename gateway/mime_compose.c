#include "gateway/base/codec.h"
#include "gateway/mime.h"
#include "queue/fields.h"

#include <stdio.h>

/* Written without GMime: its header encoder turns a long word into encoded words, which breaks
 * List-Unsubscribe and References, and here every line is under our own control. */

/* RFC 5322 2.1.1: no line above 998 bytes; 78 is what is preferred. */
#define LINE_MAX_BYTES 998u
#define LINE_WANTED 76u
#define BOUNDARY_MAX 70u

/* `status` is the first failure; after it nothing is written any more, so that the calls need not
 * be checked one by one. */
struct writer {
    struct buf *out;
    struct err *err;
    int status;
    char seed[48];
    unsigned boundaries; /* how many were made */
};

static void put(struct writer *w, struct span bytes)
{
    if (w->status == 0) {
        w->status = buf_append(w->out, bytes);
        if (w->status != 0) {
            err_set(w->err, w->status, "The composed message is larger than %zu bytes.",
                    w->out->max);
        }
    }
}

static void put_text(struct writer *w, const char *text)
{
    put(w, span_of(text));
}

PRINTF_LIKE(2, 3) static void refuse(struct writer *w, const char *format, ...)
{
    if (w->status == 0) {
        struct err why;
        va_list args;
        va_start(args, format);
        vsnprintf(why.text, sizeof(why.text), format, args);
        va_end(args);
        w->status = err_set(w->err, ERR_INVAL, "%s", why.text);
    }
}

/* ---- Header fields ---- */

static bool is_wsp(char c)
{
    return c == ' ' || c == '\t';
}

static bool printable(struct span s)
{
    for (size_t i = 0; i < s.len; i++) {
        if ((s.data[i] < 32 || s.data[i] > 126) && s.data[i] != '\t') {
            return false;
        }
    }
    return true;
}

/* Length of the white space and the word after it that `s` starts with. */
static size_t word_length(struct span s)
{
    size_t len = 0;
    while (len < s.len && is_wsp(s.data[len])) {
        len++;
    }
    while (len < s.len && !is_wsp(s.data[len])) {
        len++;
    }
    return len;
}

/* Printable ASCII, broken before white space only, so that unfolding gives the same bytes.
 * `column`: what stands on the line already. False when a word is too long for any line; then
 * nothing was written. */
static bool put_folded(struct writer *w, struct span text, size_t column)
{
    struct span rest = text;
    while (rest.len > 0) {
        size_t len = word_length(rest);
        if (len >= LINE_MAX_BYTES - (rest.data == text.data ? column : 0)) {
            return false;
        }
        rest = span_make(rest.data + len, rest.len - len);
    }
    while (text.len > 0) {
        size_t len = word_length(text);
        if (column + len > LINE_WANTED && is_wsp(text.data[0])) {
            put_text(w, "\r\n");
            column = 0;
        }
        put(w, span_make(text.data, len));
        column += len;
        text = span_make(text.data + len, text.len - len);
    }
    return true;
}

static void put_encoded(struct writer *w, struct span utf8)
{
    if (w->status == 0) {
        w->status = fields_encode_text(utf8, w->out);
        if (w->status != 0) {
            err_set(w->err, w->status, "The composed message is larger than %zu bytes.",
                    w->out->max);
        }
    }
}

/* Control characters as spaces, trimmed: templates like to leave a line end. */
static void one_line(struct span in, struct buf *out)
{
    buf_init(out, in.len + 1);
    char *room = NULL;
    if (buf_reserve(out, in.len + 1, &room) != 0) {
        return; /* an empty text; the writer fails for want of memory as well */
    }
    for (size_t i = 0; i < in.len; i++) {
        unsigned char c = (unsigned char)in.data[i];
        room[i] = c < 32 || c == 127 ? ' ' : in.data[i];
    }
    buf_commit(out, in.len);
}

static void put_subject(struct writer *w, struct span subject)
{
    if (subject.len == 0) {
        return;
    }
    if (!codec_utf8_valid(subject)) {
        refuse(w, "The subject is not UTF-8.");
        return;
    }
    struct buf line;
    one_line(subject, &line);
    struct span text = span_trim(buf_span(&line));
    put_text(w, "Subject: ");
    bool plain = printable(text) && span_search(text, SPAN_LIT("=?")) == text.len;
    if (!plain || !put_folded(w, text, sizeof("Subject: ") - 1)) {
        put_encoded(w, text);
    }
    put_text(w, "\r\n");
    buf_release(&line);
}

static bool phrase_plain(struct span name)
{
    for (size_t i = 0; i < name.len; i++) {
        char c = name.data[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  (c != '\0' && strchr(" -_+!#$%&'*/^`{|}~", c) != NULL);
        if (!ok) {
            return false;
        }
    }
    return true;
}

static void put_quoted(struct writer *w, struct span text)
{
    put_text(w, "\"");
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] == '"' || text.data[i] == '\\') {
            put_text(w, "\\");
        }
        put(w, span_make(text.data + i, 1));
    }
    put_text(w, "\"");
}

/* Display name: atoms, a quoted string, or encoded words (RFC 2047 5 (3): base64 is safe there). */
static void put_display(struct writer *w, struct span name)
{
    struct buf line;
    one_line(name, &line);
    struct span text = span_trim(buf_span(&line));
    if (!printable(text) || text.len > 400 || span_search(text, SPAN_LIT("=?")) < text.len) {
        put_encoded(w, text);
    } else if (phrase_plain(text)) {
        put(w, text);
    } else {
        put_quoted(w, text);
    }
    buf_release(&line);
}

static void put_addresses(struct writer *w, const char *field, const struct mail_address *list,
                          size_t count)
{
    if (count == 0) {
        return;
    }
    put_text(w, field);
    put_text(w, ": ");
    for (size_t i = 0; i < count; i++) {
        struct span address = list[i].address;
        if (!address_valid(address, true)) {
            refuse(w, "%s: \"%.*s\" is no mail address.", field,
                   (int)(address.len < 200 ? address.len : 200), address.data);
            return;
        }
        if (!codec_utf8_valid(list[i].name)) {
            refuse(w, "%s: the display name of \"%.*s\" is not UTF-8.", field, SPAN_FMT(address));
            return;
        }
        put_text(w, i > 0 ? ",\r\n " : "");
        if (span_trim(list[i].name).len > 0) {
            put_display(w, list[i].name);
            put_text(w, list[i].name.len + address.len > LINE_WANTED ? "\r\n <" : " <");
            put(w, address);
            put_text(w, ">");
        } else {
            put(w, address);
        }
    }
    put_text(w, "\r\n");
}

static bool header_name_valid(struct span name)
{
    for (size_t i = 0; i < name.len; i++) {
        if (name.data[i] <= 32 || name.data[i] >= 127 || name.data[i] == ':') {
            return false; /* RFC 5322 3.6.8 ftext */
        }
    }
    return name.len > 0 && name.len <= 76;
}

static void put_header(struct writer *w, const struct mail_header *header)
{
    struct span name = header->name;
    struct span value = span_trim(header->value);
    if (!header_name_valid(name)) {
        refuse(w, "A header name is empty, too long, or holds a character that is not allowed.");
        return;
    }
    if (mime_field_reserved(name)) {
        refuse(w, "The header \"%.*s\" cannot be set among the extra headers.", SPAN_FMT(name));
        return;
    }
    bool plain = printable(value);
    for (size_t i = 0; !plain && i < value.len; i++) {
        unsigned char c = (unsigned char)value.data[i];
        if ((c < 32 && c != '\t') || c == 127) {
            refuse(w, "The header \"%.*s\" holds a control character.", SPAN_FMT(name));
            return;
        }
    }
    if (!codec_utf8_valid(value)) {
        refuse(w, "The header \"%.*s\" is not UTF-8.", SPAN_FMT(name));
        return;
    }
    put(w, name);
    put_text(w, ": ");
    if (!plain) {
        put_encoded(w, value);
    } else if (!put_folded(w, value, name.len + 2)) {
        /* Only unstructured text may become encoded words (RFC 2047 5). */
        if (span_istarts(name, SPAN_LIT("X-"))) {
            put_encoded(w, value);
        } else {
            refuse(w, "The header \"%.*s\" has a word of more than %u bytes.", SPAN_FMT(name),
                   LINE_MAX_BYTES);
        }
    }
    put_text(w, "\r\n");
}

/* What stands between <>: no spaces, no <>, printable. Empty when it is no identifier. */
static struct span bare_id(struct span id)
{
    id = span_trim(id);
    if (id.len > 2 && id.data[0] == '<' && id.data[id.len - 1] == '>') {
        id = span_make(id.data + 1, id.len - 2);
    }
    for (size_t i = 0; i < id.len; i++) {
        if (id.data[i] <= 32 || id.data[i] > 126 || id.data[i] == '<' || id.data[i] == '>') {
            return span_make(NULL, 0);
        }
    }
    return id.len <= 900 ? id : span_make(NULL, 0);
}

static void put_id(struct writer *w, const char *field, struct span id)
{
    struct span bare = bare_id(id);
    if (bare.len == 0) {
        refuse(w, "%s: \"%.*s\" is no identifier.", field, (int)(id.len < 200 ? id.len : 200),
               id.data);
        return;
    }
    put_text(w, field);
    put_text(w, ": <");
    put(w, bare);
    put_text(w, ">\r\n");
}

/* ---- Texts ---- */

/* CR LF, LF and a lone CR all end a line; the last line gets an end as well. */
static int canonical_text(struct span text, struct buf *out)
{
    size_t worst = 0;
    if (size_mul(text.len, 2, &worst) != 0) {
        return ERR_LIMIT;
    }
    buf_init(out, worst + 2);
    int status = 0;
    while (text.len > 0 && status == 0) {
        size_t len = 0;
        while (len < text.len && text.data[len] != '\r' && text.data[len] != '\n') {
            len++;
        }
        status = buf_append(out, span_make(text.data, len));
        if (status == 0) {
            status = buf_append(out, SPAN_LIT("\r\n"));
        }
        bool pair = len + 1 < text.len && text.data[len] == '\r' && text.data[len + 1] == '\n';
        len += len < text.len ? (pair ? 2 : 1) : 0;
        text = span_make(text.data + len, text.len - len);
    }
    return status;
}

enum encoding {
    ENCODING_7BIT,
    ENCODING_QUOTED_PRINTABLE,
    ENCODING_BASE64,
};

/* `text` is canonical. Quoted-printable costs two more bytes for each that is not plain, base64 a
 * third of everything. */
static enum encoding text_encoding(struct span text)
{
    size_t odd = 0;
    size_t column = 0;
    size_t longest = 0;
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        column = c == '\n' ? 0 : column + 1;
        longest = column > longest ? column : longest;
        odd += c > 126 || (c < 32 && c != '\t' && c != '\r' && c != '\n') ? 1 : 0;
    }
    if (odd > text.len / 6) {
        return ENCODING_BASE64;
    }
    return odd == 0 && longest < LINE_MAX_BYTES ? ENCODING_7BIT : ENCODING_QUOTED_PRINTABLE;
}

/* RFC 2045 6.7: lines of at most 76, white space at a line's end is encoded. */
static void put_quoted_printable(struct writer *w, struct span text)
{
    static const char hex[] = "0123456789ABCDEF";
    char line[LINE_WANTED + 8];
    size_t len = 0;
    for (size_t i = 0; i < text.len && w->status == 0; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c == '\r' && i + 1 < text.len && text.data[i + 1] == '\n') {
            put(w, span_make(line, len));
            put_text(w, "\r\n");
            len = 0;
            i++;
            continue;
        }
        bool last = i + 2 < text.len && text.data[i + 1] == '\r' && text.data[i + 2] == '\n';
        bool plain = (c > 32 && c < 127 && c != '=') || ((c == ' ' || c == '\t') && !last);
        if (len + (plain ? 1 : 3) > LINE_WANTED - 1) {
            line[len] = '=';
            put(w, span_make(line, len + 1));
            put_text(w, "\r\n");
            len = 0;
        }
        if (plain) {
            line[len++] = (char)c;
        } else {
            line[len++] = '=';
            line[len++] = hex[c >> 4];
            line[len++] = hex[c & 15];
        }
    }
    put(w, span_make(line, len));
}

static void put_base64(struct writer *w, struct span bytes)
{
    if (w->status == 0 && bytes.len > 0) {
        w->status = codec_base64_encode(bytes, LINE_WANTED, w->out);
        if (w->status != 0) {
            err_set(w->err, w->status, "The composed message is larger than %zu bytes.",
                    w->out->max);
        }
    }
}

static const char *encoding_field(enum encoding encoding)
{
    switch (encoding) {
    case ENCODING_7BIT:
        return "Content-Transfer-Encoding: 7bit\r\n\r\n";
    case ENCODING_QUOTED_PRINTABLE:
        return "Content-Transfer-Encoding: quoted-printable\r\n\r\n";
    case ENCODING_BASE64:
        return "Content-Transfer-Encoding: base64\r\n\r\n";
    }
    UNREACHABLE();
}

static void put_text_part(struct writer *w, const char *subtype, struct span text)
{
    if (!codec_utf8_valid(text)) {
        refuse(w, "The %s text is not UTF-8.", subtype);
        return;
    }
    struct buf canonical;
    int status = canonical_text(text, &canonical);
    if (status != 0) {
        w->status = w->status != 0 ? w->status
                                   : err_set(w->err, status, "There is no memory for the text.");
    }
    struct span body = buf_span(&canonical);
    enum encoding encoding = text_encoding(body);
    put_text(w, "Content-Type: text/");
    put_text(w, subtype);
    put_text(w, "; charset=utf-8\r\n");
    put_text(w, encoding_field(encoding));
    if (encoding == ENCODING_BASE64) {
        put_base64(w, body);
    } else if (encoding == ENCODING_QUOTED_PRINTABLE) {
        put_quoted_printable(w, body);
    } else {
        put(w, body);
    }
    buf_release(&canonical);
}

/* ---- Attachments ---- */

static bool is_token_char(char c)
{
    return c > 32 && c < 127 && strchr("()<>@,;:\\\"/[]?=", c) == NULL; /* RFC 2045 5.1 */
}

static size_t token_length(struct span s)
{
    size_t len = 0;
    while (len < s.len && is_token_char(s.data[len])) {
        len++;
    }
    return len;
}

/* "type/subtype", perhaps with parameters. */
static bool content_type_valid(struct span type)
{
    size_t at = token_length(type);
    if (at == 0 || at == type.len || type.data[at] != '/' || type.len > 400 || !printable(type)) {
        return false;
    }
    struct span rest = span_make(type.data + at + 1, type.len - at - 1);
    size_t subtype = token_length(rest);
    rest = span_trim(span_make(rest.data + subtype, rest.len - subtype));
    return subtype > 0 && (rest.len == 0 || rest.data[0] == ';') &&
           !span_istarts(type, SPAN_LIT("multipart/"));
}

/* Whether bytes can stand in a 7bit part as they are: a message must not be encoded (RFC 2046 5.2).
 */
static bool clean_7bit(struct span bytes)
{
    size_t column = 0;
    for (size_t i = 0; i < bytes.len; i++) {
        unsigned char c = (unsigned char)bytes.data[i];
        bool end = c == '\n';
        bool pair = (c == '\r') == (i + 1 < bytes.len && bytes.data[i + 1] == '\n');
        column = end ? 0 : column + 1;
        if (c == 0 || c > 126 || column >= LINE_MAX_BYTES || (!end && !pair)) {
            return false;
        }
    }
    return true;
}

/* RFC 2231 3 and 4: continued pieces, each percent-encoded. `text` is UTF-8. */
static void put_parameter_encoded(struct writer *w, const char *name, struct span text)
{
    struct buf encoded;
    size_t worst = 0;
    if (w->status != 0 || size_mul(text.len, 3, &worst) != 0) {
        return;
    }
    buf_init(&encoded, worst + 1);
    w->status = codec_percent_encode(text, &encoded);
    struct span rest = buf_span(&encoded);
    for (unsigned piece = 0; rest.len > 0 && w->status == 0; piece++) {
        size_t len = rest.len < 50 ? rest.len : 50;
        if (len < rest.len && rest.data[len - 1] == '%') {
            len -= 1; /* an escape is not cut */
        } else if (len < rest.len && rest.data[len - 2] == '%') {
            len -= 2;
        }
        char head[64];
        snprintf(head, sizeof(head), ";\r\n %s*%u*=%s", name, piece, piece == 0 ? "UTF-8''" : "");
        put_text(w, head);
        put(w, span_make(rest.data, len));
        rest = span_make(rest.data + len, rest.len - len);
    }
    buf_release(&encoded);
}

static void put_file_name(struct writer *w, struct span name)
{
    if (name.len == 0) {
        return;
    }
    if (!codec_utf8_valid(name)) {
        refuse(w, "The name of an attachment is not UTF-8.");
        return;
    }
    struct buf line;
    one_line(name, &line);
    struct span text = span_trim(buf_span(&line));
    if (printable(text) && text.len <= 60) {
        put_text(w, ";\r\n filename=");
        put_quoted(w, text);
    } else {
        put_parameter_encoded(w, "filename", text);
    }
    buf_release(&line);
}

static void put_attachment(struct writer *w, const struct mail_attachment *attachment)
{
    struct span type = attachment->content_type;
    if (type.len == 0) {
        type = SPAN_LIT("application/octet-stream");
    }
    if (!content_type_valid(type)) {
        refuse(w, "The content type \"%.*s\" of an attachment cannot be used.",
               (int)(type.len < 200 ? type.len : 200), type.data);
        return;
    }
    enum encoding encoding = ENCODING_BASE64;
    if (span_istarts(type, SPAN_LIT("message/"))) {
        if (clean_7bit(attachment->content)) {
            encoding = ENCODING_7BIT;
        } else {
            type = SPAN_LIT("application/octet-stream"); /* so that it may be encoded */
        }
    }
    put_text(w, "Content-Type: ");
    put(w, type);
    put_text(w, attachment->is_inline ? "\r\nContent-Disposition: inline"
                                      : "\r\nContent-Disposition: attachment");
    put_file_name(w, attachment->name);
    put_text(w, "\r\n");
    if (attachment->content_id.len > 0) {
        put_id(w, "Content-ID", attachment->content_id);
    }
    put_text(w, encoding_field(encoding));
    if (encoding == ENCODING_BASE64) {
        put_base64(w, attachment->content);
    } else {
        put(w, attachment->content);
    }
}

/* ---- Structure ----
 *
 * mixed { alternative { text, related { html, inline ... } }, attachment ... }, each level only
 * where it holds more than one part. */

struct boundary {
    char text[BOUNDARY_MAX + 1];
};

/* "=_" occurs in neither quoted-printable nor base64; in 7bit parts the seed keeps it apart. */
static struct boundary boundary_open(struct writer *w, const char *type)
{
    struct boundary boundary;
    w->boundaries++;
    snprintf(boundary.text, sizeof(boundary.text), "=_%s_%u", w->seed, w->boundaries);
    put_text(w, "Content-Type: multipart/");
    put_text(w, type);
    put_text(w, ";\r\n boundary=\"");
    put_text(w, boundary.text);
    put_text(w, "\"\r\n\r\n");
    return boundary;
}

static void boundary_next(struct writer *w, const struct boundary *boundary)
{
    put_text(w, "\r\n--");
    put_text(w, boundary->text);
    put_text(w, "\r\n");
}

static void boundary_close(struct writer *w, const struct boundary *boundary)
{
    put_text(w, "\r\n--");
    put_text(w, boundary->text);
    put_text(w, "--\r\n");
}

/* Whether the attachment goes beside the html. */
static bool goes_inline(const struct mail_view *view, const struct mail_attachment *attachment)
{
    return view->has_html && attachment->is_inline && attachment->content_id.len > 0;
}

static size_t inline_count(const struct mail_view *view)
{
    size_t count = 0;
    for (size_t i = 0; i < view->attachment_count; i++) {
        count += goes_inline(view, &view->attachments[i]) ? 1 : 0;
    }
    return count;
}

static void put_attachments(struct writer *w, const struct mail_view *view, bool inline_ones,
                            const struct boundary *boundary)
{
    for (size_t i = 0; i < view->attachment_count; i++) {
        if (goes_inline(view, &view->attachments[i]) == inline_ones) {
            boundary_next(w, boundary);
            put_attachment(w, &view->attachments[i]);
        }
    }
}

static void put_html(struct writer *w, const struct mail_view *view)
{
    if (inline_count(view) == 0) {
        put_text_part(w, "html", view->html);
        return;
    }
    struct boundary boundary = boundary_open(w, "related; type=\"text/html\"");
    boundary_next(w, &boundary);
    put_text_part(w, "html", view->html);
    put_attachments(w, view, true, &boundary);
    boundary_close(w, &boundary);
}

static void put_body(struct writer *w, const struct mail_view *view)
{
    if (!view->has_html) {
        put_text_part(w, "plain", view->text);
    } else if (!view->has_text) {
        put_html(w, view);
    } else {
        struct boundary boundary = boundary_open(w, "alternative");
        boundary_next(w, &boundary);
        put_text_part(w, "plain", view->text);
        boundary_next(w, &boundary);
        put_html(w, view);
        boundary_close(w, &boundary);
    }
}

static void put_content(struct writer *w, const struct mail_view *view)
{
    if (view->attachment_count == inline_count(view)) {
        put_body(w, view);
        return;
    }
    struct boundary boundary = boundary_open(w, "mixed");
    boundary_next(w, &boundary);
    put_body(w, view);
    put_attachments(w, view, false, &boundary);
    boundary_close(w, &boundary);
}

static void choose_seed(struct writer *w, struct span wanted)
{
    if (wanted.len > 0 && wanted.len <= 40) {
        snprintf(w->seed, sizeof(w->seed), "%.*s", SPAN_FMT(wanted));
        return;
    }
    unsigned char random[16];
    codec_random(random, sizeof(random));
    codec_hex(random, sizeof(random), w->seed);
}

int mime_compose(const struct mail_view *view, const struct mime_options *options, struct buf *out,
                 struct err *err)
{
    size_t before = buf_len(out);
    struct writer w = {.out = out, .err = err};
    choose_seed(&w, options->boundary);
    put_addresses(&w, "From", &view->from, view->from.address.len > 0 ? 1 : 0);
    put_addresses(&w, "To", view->to, view->to_count);
    put_addresses(&w, "Cc", view->cc, view->cc_count);
    put_addresses(&w, "Reply-To", view->reply_to, view->reply_to_count);
    put_subject(&w, view->subject);
    if (view->message_id.len > 0) {
        put_id(&w, "Message-ID", view->message_id);
    }
    for (size_t i = 0; i < view->header_count; i++) {
        put_header(&w, &view->headers[i]);
    }
    put_text(&w, "MIME-Version: 1.0\r\n");
    put_content(&w, view);
    if (w.status != 0) {
        buf_truncate(out, before);
    }
    return w.status;
}
