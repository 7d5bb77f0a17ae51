#include "backends/acs.h"
#include "gateway/base/codec.h"
#include "queue/fields.h"
#include "queue/message.h"

/* Written by hand and not with jansson: attachments of 7 MB are encoded straight into the request
 * instead of being copied into strings twice. */

/* `status` is the first failure; after it nothing is written any more. */
struct writer {
    struct buf *out;
    int status;
};

static void put(struct writer *w, struct span bytes)
{
    if (w->status == 0) {
        w->status = buf_append(w->out, bytes);
    }
}

static void put_text(struct writer *w, const char *text)
{
    put(w, span_of(text));
}

/* A JSON string (RFC 8259 7). What is no UTF-8 becomes U+FFFD. */
static void put_string(struct writer *w, struct span s)
{
    put_text(w, "\"");
    size_t from = 0;
    size_t at = 0;
    while (at < s.len) {
        unsigned char c = (unsigned char)s.data[at];
        size_t step = codec_utf8_step(span_make(s.data + at, s.len - at));
        if (step > 0 && c >= 32 && c != '"' && c != '\\') {
            at += step;
            continue;
        }
        put(w, span_make(s.data + from, at - from));
        if (step == 0) {
            put_text(w, "\xef\xbf\xbd");
        } else if (w->status == 0) {
            w->status = buf_printf(w->out, "\\u%04x", c);
        }
        at++;
        from = at;
    }
    put(w, span_make(s.data + from, s.len - from));
    put_text(w, "\"");
}

static void put_key(struct writer *w, const char *key)
{
    put_text(w, "\"");
    put_text(w, key);
    put_text(w, "\":");
}

/* ---- Recipients ---- */

enum place {
    PLACE_BCC,
    PLACE_TO,
    PLACE_CC,
};

struct placed {
    enum place place[BATCH_RECIPIENTS_MAX];
    struct span name[BATCH_RECIPIENTS_MAX];
};

static void place_list(const struct mail_address *list, size_t list_count, enum place place,
                       const struct span *recipients, size_t count, struct placed *out)
{
    for (size_t i = 0; i < list_count; i++) {
        for (size_t j = 0; j < count; j++) {
            if (out->place[j] == PLACE_BCC && address_same(list[i].address, recipients[j])) {
                out->place[j] = place;
                out->name[j] = list[i].name;
            }
        }
    }
}

static void place_all(const struct mail_view *view, const struct delivery *delivery, size_t from,
                      size_t count, struct placed *out)
{
    *out = (struct placed){.place = {PLACE_BCC}};
    const struct span *recipients = delivery->recipients + from;
    place_list(view->to, view->to_count, PLACE_TO, recipients, count, out);
    place_list(view->cc, view->cc_count, PLACE_CC, recipients, count, out);
}

size_t acs_visible_count(const struct mail_view *view, const struct delivery *delivery, size_t from,
                         size_t count)
{
    struct placed placed;
    size_t visible = 0;
    place_all(view, delivery, from, count, &placed);
    for (size_t i = 0; i < count; i++) {
        visible += placed.place[i] != PLACE_BCC ? 1 : 0;
    }
    return visible;
}

static void put_address(struct writer *w, struct span address, struct span name)
{
    put_text(w, "{\"address\":");
    put_string(w, address);
    if (name.len > 0) {
        put_text(w, ",\"displayName\":");
        put_string(w, name);
    }
    put_text(w, "}");
}

/* Whether any stands at `place`. */
static bool put_place(struct writer *w, const char *key, enum place place,
                      const struct span *recipients, size_t count, const struct placed *placed)
{
    bool any = false;
    for (size_t i = 0; i < count; i++) {
        if (placed->place[i] != place) {
            continue;
        }
        if (any) {
            put_text(w, ",");
        } else {
            put_text(w, place == PLACE_TO ? "" : ",");
            put_key(w, key);
            put_text(w, "[");
        }
        put_address(w, recipients[i], placed->name[i]);
        any = true;
    }
    put_text(w, any ? "]" : "");
    return any;
}

/* `to` must not be empty (services.md 2.1). With only Cc visible the first of them moves up; alone
 * and hidden, a recipient is told nothing new by standing there himself; else a neutral address
 * fills it. */
static void put_recipients(struct writer *w, const struct mail_view *view,
                           const struct delivery *delivery, size_t from, size_t count,
                           const char *neutral_to)
{
    const struct span *recipients = delivery->recipients + from;
    struct placed placed;
    place_all(view, delivery, from, count, &placed);
    bool has_to = false;
    size_t first_cc = count;
    for (size_t i = 0; i < count; i++) {
        has_to = has_to || placed.place[i] == PLACE_TO;
        first_cc = placed.place[i] == PLACE_CC && first_cc == count ? i : first_cc;
    }
    if (!has_to && first_cc < count) {
        placed.place[first_cc] = PLACE_TO;
    } else if (!has_to && count == 1) {
        placed.place[0] = PLACE_TO;
    }
    put_key(w, "recipients");
    put_text(w, "{");
    if (!put_place(w, "to", PLACE_TO, recipients, count, &placed)) {
        put_key(w, "to");
        put_text(w, "[");
        put_address(w, span_of(neutral_to), span_make(NULL, 0));
        put_text(w, "]");
    }
    (void)put_place(w, "cc", PLACE_CC, recipients, count, &placed);
    (void)put_place(w, "bcc", PLACE_BCC, recipients, count, &placed);
    put_text(w, "}");
}

/* ---- Everything else ---- */

static bool from_is_sender(const struct mail_view *view, const char *sender)
{
    return view->from.address.len == 0 || address_same(view->from.address, span_of(sender));
}

static void put_reply_to(struct writer *w, const struct mail_view *view, const char *sender)
{
    const struct mail_address *list = view->reply_to;
    size_t count = view->reply_to_count;
    if (count == 0 && !from_is_sender(view, sender)) {
        list = &view->from;
        count = 1;
    }
    if (count == 0) {
        return;
    }
    put_text(w, ",");
    put_key(w, "replyTo");
    for (size_t i = 0; i < count; i++) {
        put_text(w, i == 0 ? "[" : ",");
        put_address(w, list[i].address, list[i].name);
    }
    put_text(w, "]");
}

/* What ACS does not write itself: a reserved name makes it refuse the whole message
 * (services.md 2.3), so only names known to be free pass. */
static bool header_passes(struct span name)
{
    static const char *const names[] = {
        "Auto-Submitted", "In-Reply-To",  "References",   "Precedence",  "Importance",
        "Priority",       "Thread-Topic", "Thread-Index", "Feedback-ID", "Organization",
    };
    if (span_istarts(name, SPAN_LIT("X-MS-Exchange-"))) {
        return false;
    }
    if (span_istarts(name, SPAN_LIT("X-")) || span_istarts(name, SPAN_LIT("List-"))) {
        return true;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (span_ieq(name, span_of(names[i]))) {
            return true;
        }
    }
    return false;
}

/* A JSON object holds a name once: the first of a repeated field counts. */
static bool header_repeats(const struct mail_view *view, size_t index)
{
    for (size_t i = 0; i < index; i++) {
        if (span_ieq(view->headers[i].name, view->headers[index].name)) {
            return true;
        }
    }
    return false;
}

static void put_header(struct writer *w, bool *any, struct span name, struct span value)
{
    if (*any) {
        put_text(w, ",");
    } else {
        put_text(w, ",\"headers\":{");
        *any = true;
    }
    put_string(w, name);
    put_text(w, ":");
    put_string(w, value);
}

static void put_headers(struct writer *w, const struct mail_view *view, const char *sender)
{
    bool any = false;
    bool has_original = false;
    if (view->message_id.len > 0) {
        put_header(w, &any, SPAN_LIT("Message-ID"), view->message_id);
    }
    for (size_t i = 0; i < view->header_count; i++) {
        const struct mail_header *header = &view->headers[i];
        if (header_passes(header->name) && !header_repeats(view, i)) {
            put_header(w, &any, header->name, header->value);
            has_original = has_original || span_ieq(header->name, SPAN_LIT("X-Original-From"));
        }
    }
    if (!has_original && !from_is_sender(view, sender)) {
        put_header(w, &any, SPAN_LIT("X-Original-From"), view->from.address);
    }
    put_text(w, any ? "}" : "");
}

static void put_attachments(struct writer *w, const struct mail_view *view)
{
    for (size_t i = 0; i < view->attachment_count && w->status == 0; i++) {
        const struct mail_attachment *attachment = &view->attachments[i];
        put_text(w, i == 0 ? ",\"attachments\":[{\"name\":" : ",{\"name\":");
        put_string(w, attachment->name);
        put_text(w, ",\"contentType\":");
        put_string(w, attachment->content_type);
        if (attachment->is_inline && attachment->content_id.len > 0) {
            put_text(w, ",\"contentId\":");
            put_string(w, attachment->content_id);
        }
        put_text(w, ",\"contentInBase64\":\"");
        if (w->status == 0) {
            w->status = codec_base64_encode(attachment->content, 0, w->out);
        }
        put_text(w, "\"}");
    }
    put_text(w, view->attachment_count > 0 ? "]" : "");
}

static void put_content(struct writer *w, const struct mail_view *view)
{
    put_key(w, "content");
    put_text(w, "{\"subject\":");
    put_string(w, view->subject);
    if (view->has_text || !view->has_html) {
        put_text(w, ",\"plainText\":");
        put_string(w, view->text);
    }
    if (view->has_html) {
        put_text(w, ",\"html\":");
        put_string(w, view->html);
    }
    put_text(w, "}");
}

int acs_message_write(const struct mail_view *view, const struct delivery *delivery, size_t from,
                      size_t count, const char *sender, const char *neutral_to, struct buf *out)
{
    struct writer w = {.out = out};
    ASSERT(count > 0 && count <= BATCH_RECIPIENTS_MAX);
    put_text(&w, "{\"senderAddress\":");
    put_string(&w, span_of(sender));
    put_text(&w, ",");
    put_content(&w, view);
    put_text(&w, ",");
    put_recipients(&w, view, delivery, from, count, neutral_to);
    put_reply_to(&w, view, sender);
    put_headers(&w, view, sender);
    put_attachments(&w, view);
    put_text(&w, "}");
    return w.status;
}
