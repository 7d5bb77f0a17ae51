#include "gateway/mime.h"

#include "gateway/base/codec.h"
#include "gateway/mime_scan.h"

#include <errno.h>
#include <gmime/gmime.h>
#include <pthread.h>

static pthread_once_t gmime_once = PTHREAD_ONCE_INIT;

static void gmime_prepare(void)
{
    g_mime_init();
    /* Classes are made here, where pthread_once orders them for all threads; GLib makes them at
     * first use under locks of its own, which ThreadSanitizer cannot see. */
    const GType types[] = {GMIME_TYPE_MESSAGE,
                           GMIME_TYPE_PART,
                           GMIME_TYPE_TEXT_PART,
                           GMIME_TYPE_MULTIPART,
                           GMIME_TYPE_MULTIPART_SIGNED,
                           GMIME_TYPE_MULTIPART_ENCRYPTED,
                           GMIME_TYPE_MESSAGE_PART,
                           GMIME_TYPE_MESSAGE_PARTIAL,
                           GMIME_TYPE_APPLICATION_PKCS7_MIME,
                           INTERNET_ADDRESS_TYPE_MAILBOX,
                           INTERNET_ADDRESS_TYPE_GROUP};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        (void)g_type_class_ref(types[i]); /* kept for the life of the process */
    }
}

/* ---- Bytes and text into the arena ---- */

struct reader {
    GMimeParserOptions *options;
    struct arena *arena;
    struct mail_view *view;
    struct err *err;
    size_t parts;
    struct mail_address *from; /* all of the From field; the view has the first */
    size_t from_count;
};

static int no_room(struct reader *r)
{
    return err_set(r->err, ERR_NOMEM, "There is not enough memory to take the message apart.");
}

static int keep(struct reader *r, struct span bytes, struct span *out)
{
    struct span copy = arena_dup(r->arena, bytes);
    if (copy.data == NULL) {
        return no_room(r);
    }
    *out = copy;
    return 0;
}

/* An array in the arena that doubles; `count` is how many it holds. NULL without room. */
static void *array_grow(struct arena *arena, void *old, size_t count, size_t size)
{
    if (count > 0 && (count & (count - 1)) != 0) {
        return old; /* room is always the next power of two */
    }
    void *room = arena_alloc(arena, (count == 0 ? 1 : 2 * count) * size);
    if (room != NULL && count > 0) {
        memcpy(room, old, count * size);
    }
    return room;
}

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

/* Copies `in` as well-formed UTF-8. In a header text control characters become spaces, so that no
 * value can start a line of its own wherever it is written later. */
static int keep_utf8(struct reader *r, struct span in, bool header, struct span *out)
{
    size_t worst = 0;
    if (size_mul(in.len, sizeof(REPLACEMENT) - 1, &worst) != 0) {
        return no_room(r);
    }
    if (!header && codec_utf8_valid(in)) {
        return keep(r, in, out);
    }
    struct buf text;
    buf_init(&text, worst + 1);
    int status = 0;
    for (size_t at = 0; at < in.len && status == 0;) {
        size_t step = codec_utf8_step(span_make(in.data + at, in.len - at));
        unsigned char c = (unsigned char)in.data[at];
        if (step == 0) {
            status = buf_append(&text, SPAN_LIT(REPLACEMENT));
            at++;
        } else if (header && step == 1 && (c < 32 || c == 127)) {
            status = buf_append_byte(&text, ' ');
            at++;
        } else {
            status = buf_append(&text, span_make(in.data + at, step));
            at += step;
        }
    }
    status = status != 0 ? no_room(r)
                         : keep(r, header ? span_trim(buf_span(&text)) : buf_span(&text), out);
    buf_release(&text);
    return status;
}

static int keep_header_text(struct reader *r, const char *text, struct span *out)
{
    return keep_utf8(r, span_of(text != NULL ? text : ""), true, out);
}

/* One run of iconv over what is left; returns false when it cannot go on after this. */
static bool convert_step(iconv_t converter, struct span *in, struct buf *out, int *status)
{
    char *room = NULL;
    *status = buf_reserve(out, 4096, &room);
    if (*status != 0) {
        return false;
    }
    char *from = (char *)(uintptr_t)in->data; /* iconv does not write there */
    size_t from_len = in->len;
    char *to = room;
    size_t to_len = 4096;
    bool end = in->len == 0; /* then this call writes what the converter held back */
    size_t done = iconv(converter, end ? NULL : &from, end ? NULL : &from_len, &to, &to_len);
    int why = errno;
    buf_commit(out, 4096 - to_len);
    *in = span_make(from, from_len);
    if (done != (size_t)-1) {
        return !end;
    }
    if (why == E2BIG) {
        return true;
    }
    *status = buf_append(out, SPAN_LIT(REPLACEMENT));
    if (why == EILSEQ && in->len > 0 && *status == 0) {
        *in = span_make(in->data + 1, in->len - 1);
        return true;
    }
    return false; /* EINVAL: cut in the middle of a character */
}

static int convert(struct reader *r, iconv_t converter, struct span in, struct span *out)
{
    size_t worst = 0;
    if (size_mul(in.len, 8, &worst) != 0) {
        return no_room(r);
    }
    struct buf text;
    buf_init(&text, worst + 8192);
    int status = 0;
    while (convert_step(converter, &in, &text, &status)) {
    }
    /* What iconv gives is well-formed; checked, because JSON relies on it. */
    status = status != 0 ? no_room(r) : keep_utf8(r, buf_span(&text), false, out);
    buf_release(&text);
    return status;
}

static int keep_text(struct reader *r, struct span in, const char *charset, struct span *out)
{
    struct span name = span_of(charset != NULL ? charset : "");
    iconv_t converter = (iconv_t)-1;
    if (name.len > 0 && !span_ieq(name, SPAN_LIT("utf-8")) &&
        !span_ieq(name, SPAN_LIT("us-ascii"))) {
        converter = g_mime_iconv_open("UTF-8", charset);
    }
    if (converter == (iconv_t)-1 && !codec_utf8_valid(in) && !span_ieq(name, SPAN_LIT("utf-8"))) {
        converter = g_mime_iconv_open("UTF-8", "windows-1252");
    }
    if (converter == (iconv_t)-1) {
        return keep_utf8(r, in, false, out);
    }
    int status = convert(r, converter, in, out);
    g_mime_iconv_close(converter);
    return status;
}

/* ---- Header ---- */

static int read_address_list(struct reader *r, InternetAddressList *list, unsigned depth,
                             struct mail_address **addresses, size_t *count)
{
    int length = list != NULL && depth < 4 ? internet_address_list_length(list) : 0;
    for (int i = 0; i < length; i++) {
        InternetAddress *entry = internet_address_list_get_address(list, i);
        if (INTERNET_ADDRESS_IS_GROUP(entry)) {
            InternetAddressList *members = internet_address_group_get_members(
                INTERNET_ADDRESS_GROUP(entry));
            int status = read_address_list(r, members, depth + 1, addresses, count);
            if (status != 0) {
                return status;
            }
            continue;
        }
        InternetAddressMailbox *mailbox = INTERNET_ADDRESS_MAILBOX(entry);
        const char *address = internet_address_mailbox_get_idn_addr(mailbox);
        if (address == NULL || strchr(address, '@') == NULL) {
            continue; /* a name without an address, as broken lists have them */
        }
        struct mail_address *array = array_grow(r->arena, *addresses, *count, sizeof(**addresses));
        if (array == NULL) {
            return no_room(r);
        }
        *addresses = array;
        struct mail_address *out = &array[*count];
        int status = keep_header_text(r, address, &out->address);
        if (status == 0) {
            status = keep_header_text(r, internet_address_get_name(entry), &out->name);
        }
        if (status != 0) {
            return status;
        }
        *count += 1;
    }
    return 0;
}

bool mime_field_reserved(struct span name)
{
    static const char *const names[] = {
        "From",
        "To",
        "Cc",
        "Bcc",
        "Reply-To",
        "Subject",
        "Message-ID",
        "MIME-Version",
        "Received",
        "Return-Path",
        "Delivered-To",
        "X-Original-To",
        "Envelope-To",
        "DKIM-Signature",
        "DomainKey-Signature",
        "Authentication-Results",
        "Received-SPF",
        "Status",
        "X-Status",
        "Lines",
    };
    static const char *const prefixes[] = {"Content-", "Resent-", "ARC-"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (span_ieq(name, span_of(names[i]))) {
            return true;
        }
    }
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        if (span_istarts(name, span_of(prefixes[i]))) {
            return true;
        }
    }
    return false;
}

/* A field's value unfolded and with its encoded words repaired, undecoded. NULL without memory. */
static const char *raw_value(GMimeHeader *field, struct buf *out)
{
    const char *raw = g_mime_header_get_raw_value(field);
    struct span value = span_of(raw != NULL ? raw : "");
    buf_init(out, 4 * value.len + 16);
    return mime_words_repair(value, out) == 0 ? buf_text(out) : NULL;
}

static int read_text_value(struct reader *r, const char *raw, struct span *out)
{
    char *unfolded = g_mime_utils_header_unfold(raw);
    char *decoded = g_mime_utils_header_decode_text(r->options, unfolded);
    int status = keep_header_text(r, decoded, out);
    g_free(decoded);
    g_free(unfolded);
    return status;
}

static int read_address_field(struct reader *r, const char *raw, struct mail_address **addresses,
                              size_t *count)
{
    InternetAddressList *list = internet_address_list_parse(r->options, raw);
    int status = read_address_list(r, list, 0, addresses, count);
    if (list != NULL) {
        g_object_unref(list);
    }
    return status;
}

static int read_other_field(struct reader *r, struct span name, const char *raw)
{
    struct mail_view *view = r->view;
    struct mail_header *array = array_grow(r->arena, view->headers, view->header_count,
                                           sizeof(*array));
    if (array == NULL) {
        return no_room(r);
    }
    view->headers = array;
    struct mail_header *out = &array[view->header_count];
    int status = keep_utf8(r, name, true, &out->name);
    if (status == 0) {
        status = read_text_value(r, raw, &out->value);
    }
    view->header_count += status == 0 ? 1 : 0;
    return status;
}

/* Of fields that may stand once only the first counts; address lists are joined. */
static int read_field(struct reader *r, struct span name, const char *raw)
{
    struct mail_view *view = r->view;
    if (span_ieq(name, SPAN_LIT("Subject")) && view->subject.len == 0) {
        return read_text_value(r, raw, &view->subject);
    }
    if (span_ieq(name, SPAN_LIT("Message-ID")) && view->message_id.len == 0) {
        return keep_header_text(r, raw, &view->message_id);
    }
    if (span_ieq(name, SPAN_LIT("From"))) {
        return read_address_field(r, raw, &r->from, &r->from_count);
    }
    if (span_ieq(name, SPAN_LIT("To"))) {
        return read_address_field(r, raw, &view->to, &view->to_count);
    }
    if (span_ieq(name, SPAN_LIT("Cc"))) {
        return read_address_field(r, raw, &view->cc, &view->cc_count);
    }
    if (span_ieq(name, SPAN_LIT("Reply-To"))) {
        return read_address_field(r, raw, &view->reply_to, &view->reply_to_count);
    }
    return mime_field_reserved(name) ? 0 : read_other_field(r, name, raw);
}

static int read_headers(struct reader *r, GMimeMessage *message)
{
    GMimeHeaderList *list = g_mime_object_get_header_list(GMIME_OBJECT(message));
    int count = g_mime_header_list_get_count(list);
    if (count > MIME_HEADERS_MAX) {
        return err_set(r->err, ERR_LIMIT, "The message has %d header fields; %d are the limit.",
                       count, MIME_HEADERS_MAX);
    }
    for (int i = 0; i < count; i++) {
        GMimeHeader *field = g_mime_header_list_get_header_at(list, i);
        const char *name = g_mime_header_get_name(field);
        struct buf value;
        const char *raw = raw_value(field, &value);
        int status = raw == NULL ? no_room(r) : 0;
        if (status == 0 && name != NULL) {
            status = read_field(r, span_of(name), raw);
        }
        buf_release(&value);
        if (status != 0) {
            return status;
        }
    }
    if (r->from_count > 0) {
        r->view->from = r->from[0];
    }
    return 0;
}

/* ---- Parts ---- */

/* Decoded; the caller unrefs it. */
static GByteArray *part_content(GMimeObject *part)
{
    GMimeStream *stream = g_mime_stream_mem_new();
    if (GMIME_IS_MESSAGE_PART(part)) {
        GMimeMessage *inner = g_mime_message_part_get_message(GMIME_MESSAGE_PART(part));
        GMimeFormatOptions *options = g_mime_format_options_new();
        g_mime_format_options_set_newline_format(options, GMIME_NEWLINE_FORMAT_DOS);
        if (inner != NULL) {
            g_mime_object_write_to_stream(GMIME_OBJECT(inner), options, stream);
        }
        g_mime_format_options_free(options);
    } else if (GMIME_IS_PART(part)) {
        GMimeDataWrapper *content = g_mime_part_get_content(GMIME_PART(part));
        if (content != NULL) {
            g_mime_data_wrapper_write_to_stream(content, stream);
        }
    }
    /* An owning stream would empty the array when it goes. */
    GByteArray *bytes = g_mime_stream_mem_get_byte_array(GMIME_STREAM_MEM(stream));
    g_mime_stream_mem_set_owner(GMIME_STREAM_MEM(stream), FALSE);
    g_object_unref(stream);
    return bytes;
}

static struct span bytes_span(const GByteArray *bytes)
{
    return span_make((const char *)bytes->data, bytes->len);
}

static bool part_is_type(GMimeObject *part, const char *type, const char *subtype)
{
    GMimeContentType *content_type = g_mime_object_get_content_type(part);
    return content_type != NULL && g_mime_content_type_is_type(content_type, type, subtype);
}

static int keep_content_type(struct reader *r, GMimeObject *part, struct span *out)
{
    GMimeContentType *type = g_mime_object_get_content_type(part);
    char *text = type != NULL ? g_mime_content_type_get_mime_type(type) : NULL;
    int status = keep_header_text(r, text != NULL ? text : "application/octet-stream", out);
    g_free(text);
    return status;
}

/* A name for a part that has none: mail programs choose by the ending. */
static int make_name(struct reader *r, struct span type, struct span *out)
{
    static const struct {
        const char *type;
        const char *ending;
    } endings[] = {
        {"text/plain", "txt"},
        {"text/html", "html"},
        {"text/calendar", "ics"},
        {"text/csv", "csv"},
        {"message/rfc822", "eml"},
        {"image/png", "png"},
        {"image/jpeg", "jpg"},
        {"image/gif", "gif"},
        {"image/svg+xml", "svg"},
        {"application/pdf", "pdf"},
        {"application/json", "json"},
        {"application/xml", "xml"},
        {"application/zip", "zip"},
        {"application/ms-tnef", "dat"},
        {"application/pkcs7-mime", "p7m"},
        {"application/x-pkcs7-mime", "p7m"},
        {"application/pkcs7-signature", "p7s"},
        {"application/x-pkcs7-signature", "p7s"},
        {"application/pgp-signature", "asc"},
    };
    const char *ending = "bin";
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        if (span_ieq(type, span_of(endings[i].type))) {
            ending = endings[i].ending;
        }
    }
    char name[40];
    int len = snprintf(name, sizeof(name), "part-%zu.%s", r->view->attachment_count + 1, ending);
    return keep(r, span_make(name, (size_t)len), out);
}

/* What GMime found is right unless its value is in encoded words, which it may cut (mime_scan.h).
 */
static int keep_file_name(struct reader *r, GMimeObject *part, struct span *out)
{
    GMimeHeaderList *list = g_mime_object_get_header_list(part);
    GMimeHeader *field = g_mime_header_list_get_header(list, "Content-Disposition");
    struct buf value;
    const char *raw = field != NULL ? raw_value(field, &value) : NULL;
    int status = 0;
    if (raw != NULL) {
        GMimeContentDisposition *parsed = g_mime_content_disposition_parse(r->options, raw);
        status = keep_header_text(r, g_mime_content_disposition_get_parameter(parsed, "filename"),
                                  out);
        g_object_unref(parsed);
    }
    if (field != NULL) {
        buf_release(&value);
    }
    field = g_mime_header_list_get_header(list, "Content-Type");
    if (status != 0 || out->len > 0 || field == NULL) {
        return status;
    }
    raw = raw_value(field, &value);
    if (raw != NULL) {
        GMimeContentType *parsed = g_mime_content_type_parse(r->options, raw);
        status = keep_header_text(r, g_mime_content_type_get_parameter(parsed, "name"), out);
        g_object_unref(parsed);
    }
    buf_release(&value);
    return status;
}

static int add_attachment(struct reader *r, GMimeObject *part, bool related)
{
    struct mail_view *view = r->view;
    struct mail_attachment *array = array_grow(r->arena, view->attachments, view->attachment_count,
                                               sizeof(*array));
    if (array == NULL) {
        return no_room(r);
    }
    view->attachments = array;
    struct mail_attachment *out = &array[view->attachment_count];
    *out = (struct mail_attachment){.is_inline = false};
    int status = keep_content_type(r, part, &out->content_type);
    if (status == 0) {
        status = keep_file_name(r, part, &out->name);
    }
    if (status == 0 && out->name.len == 0) {
        status = make_name(r, out->content_type, &out->name);
    }
    if (status == 0) {
        status = keep_header_text(r, g_mime_object_get_content_id(part), &out->content_id);
    }
    if (status != 0) {
        return status;
    }
    /* Without a Content-ID nothing can refer to it; shown in a list it is at least not lost. */
    const char *disposition = g_mime_object_get_disposition(part);
    bool said_inline = disposition != NULL && g_ascii_strcasecmp(disposition, "inline") == 0;
    out->is_inline = out->content_id.len > 0 && (said_inline || (related && disposition == NULL));
    GByteArray *bytes = part_content(part);
    status = keep(r, bytes_span(bytes), &out->content);
    g_byte_array_unref(bytes);
    view->attachment_count += status == 0 ? 1 : 0;
    return status;
}

static bool part_is_text(GMimeObject *part, const char *subtype)
{
    const char *disposition = g_mime_object_get_disposition(part);
    return GMIME_IS_PART(part) && part_is_type(part, "text", subtype) &&
           (disposition == NULL || g_ascii_strcasecmp(disposition, "attachment") != 0);
}

/* Takes a leaf as body when it may be one. */
static int take_body(struct reader *r, GMimeObject *part, bool *out_taken)
{
    struct mail_view *view = r->view;
    bool text = !view->has_text && part_is_text(part, "plain");
    bool html = !view->has_html && part_is_text(part, "html");
    *out_taken = text || html;
    if (!text && !html) {
        return 0;
    }
    GByteArray *bytes = part_content(part);
    const char *charset = g_mime_object_get_content_type_parameter(part, "charset");
    int status = keep_text(r, bytes_span(bytes), charset, text ? &view->text : &view->html);
    g_byte_array_unref(bytes);
    if (status == 0) {
        view->has_text = view->has_text || text;
        view->has_html = view->has_html || html;
    }
    return status;
}

static int read_part(struct reader *r, GMimeObject *part, unsigned depth, bool body, bool related);

/* Which child of a multipart/related is shown: the `start` parameter's, else the first (RFC 2387).
 */
static int related_root(GMimeMultipart *multipart)
{
    const char *start = g_mime_object_get_content_type_parameter(GMIME_OBJECT(multipart), "start");
    if (start == NULL) {
        return 0;
    }
    struct span wanted = span_trim(span_of(start));
    if (wanted.len > 1 && wanted.data[0] == '<') {
        wanted = span_make(wanted.data + 1, wanted.len - 2);
    }
    int count = g_mime_multipart_get_count(multipart);
    for (int i = 0; i < count; i++) {
        const char *id = g_mime_object_get_content_id(g_mime_multipart_get_part(multipart, i));
        if (id != NULL && span_eq(span_of(id), wanted)) {
            return i;
        }
    }
    return 0;
}

static int read_multipart(struct reader *r, GMimeMultipart *multipart, unsigned depth, bool body)
{
    GMimeObject *object = GMIME_OBJECT(multipart);
    bool alternative = part_is_type(object, "multipart", "alternative");
    bool related = part_is_type(object, "multipart", "related");
    int root = related ? related_root(multipart) : -1;
    int count = g_mime_multipart_get_count(multipart);
    for (int i = 0; i < count; i++) {
        bool taken = r->view->has_text || r->view->has_html;
        bool may_be_body = body && (alternative || (related ? i == root : !taken));
        int status = read_part(r, g_mime_multipart_get_part(multipart, i), depth + 1, may_be_body,
                               related && i != root);
        if (status != 0) {
            return status;
        }
    }
    return 0;
}

static int read_part(struct reader *r, GMimeObject *part, unsigned depth, bool body, bool related)
{
    if (depth > MIME_DEPTH_MAX) {
        return err_set(r->err, ERR_LIMIT, "The message nests more than %d MIME parts.",
                       MIME_DEPTH_MAX);
    }
    r->parts++;
    if (r->parts > MIME_PARTS_MAX) {
        return err_set(r->err, ERR_LIMIT, "The message has more than %d MIME parts.",
                       MIME_PARTS_MAX);
    }
    if (GMIME_IS_MULTIPART(part)) {
        return read_multipart(r, GMIME_MULTIPART(part), depth, body);
    }
    bool taken = false;
    int status = body ? take_body(r, part, &taken) : 0;
    return status != 0 || taken ? status : add_attachment(r, part, related);
}

static int read_message(struct reader *r, GMimeMessage *message)
{
    int status = read_headers(r, message);
    GMimeObject *part = g_mime_message_get_mime_part(message);
    if (status == 0 && part != NULL) {
        status = read_part(r, part, 0, true, false);
    }
    return status;
}

static GMimeMessage *parse(struct span bytes, GMimeParserOptions *options)
{
    GMimeStream *stream = g_mime_stream_mem_new_with_buffer(bytes.data, bytes.len);
    GMimeParser *parser = g_mime_parser_new_with_stream(stream);
    g_mime_parser_set_format(parser, GMIME_FORMAT_MESSAGE);
    GMimeMessage *message = g_mime_parser_construct_message(parser, options);
    g_object_unref(parser);
    g_object_unref(stream);
    return message;
}

int mime_read(struct span message, struct arena *arena, struct mail_view *out, struct err *err)
{
    static const char *charsets[] = {"utf-8", "windows-1252", NULL};
    int status = mime_affordable(message, err);
    if (status != 0) {
        return status;
    }
    pthread_once(&gmime_once, gmime_prepare);
    GMimeParserOptions *options = g_mime_parser_options_new();
    g_mime_parser_options_set_fallback_charsets(options, charsets);
    GMimeMessage *parsed = message.len > 0 ? parse(message, options) : NULL;
    struct mail_view view = {.has_text = false};
    struct reader reader = {.options = options, .arena = arena, .view = &view, .err = err};
    if (parsed == NULL) {
        status = err_set(err, ERR_INVAL, "The message has no header that could be read.");
    } else {
        status = read_message(&reader, parsed);
        g_object_unref(parsed);
    }
    g_mime_parser_options_free(options);
    if (status == 0) {
        *out = view;
    }
    return status;
}
