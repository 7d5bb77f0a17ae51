#include "gateway/digest_mail.h"

#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/mime.h"
#include "queue/fields.h"

#include <stdio.h>

#define VERSION "1"
#define TEXT_MAX ((size_t)512 * 1024)
#define ITEM_TEXT_MAX ((size_t)2000)
#define SUBJECT_MAX ((size_t)200)

int digest_about_write(const struct digest_about *about, struct buf *out)
{
    const struct span head[] = {
        SPAN_LIT(VERSION), about->client,       about->lane,
        about->key,        about->reverse_path, about->smtputf8 ? SPAN_LIT("8") : SPAN_LIT("7")};
    size_t count = sizeof head / sizeof head[0] + about->recipient_count;
    for (size_t i = 0; i < count; i++) {
        size_t fixed = sizeof head / sizeof head[0];
        struct span part = i < fixed ? head[i] : about->recipients[i - fixed];
        if (span_find(part, '\n') < part.len) {
            return ERR_INVAL;
        }
        int status = buf_append(out, part);
        status = status == ERR_OK ? buf_append_byte(out, '\n') : status;
        if (status != ERR_OK) {
            return status;
        }
    }
    return ERR_OK;
}

int digest_about_read(struct span text, struct arena *arena, struct digest_about *out)
{
    size_t lines = 0;
    for (size_t i = 0; i < text.len; i++) {
        lines += text.data[i] == '\n' ? 1 : 0;
    }
    if (lines < 7 || !span_eq(span_cut(&text, '\n'), SPAN_LIT(VERSION))) {
        return ERR_INVAL;
    }
    struct span *recipients = arena_alloc(arena, lines * sizeof *recipients);
    if (recipients == NULL) {
        return ERR_NOMEM;
    }
    *out = (struct digest_about){.recipients = recipients};
    out->client = span_cut(&text, '\n');
    out->lane = span_cut(&text, '\n');
    out->key = span_cut(&text, '\n');
    out->reverse_path = span_cut(&text, '\n');
    out->smtputf8 = span_eq(span_cut(&text, '\n'), SPAN_LIT("8"));
    while (text.len > 0) {
        recipients[out->recipient_count++] = span_cut(&text, '\n');
    }
    return ERR_OK;
}

/* At most `max` bytes, cut between characters. */
static struct span cut_text(struct span text, size_t max)
{
    if (text.len > max) {
        text.len = max;
        while (text.len > 0 && ((unsigned char)text.data[text.len] & 0xc0) == 0x80) {
            text.len--;
        }
    }
    return text;
}

static int append_item(struct buf *out, size_t number, const struct digest_message *message,
                       const struct mail_view *view)
{
    char at[CLOCK_TEXT_MAX];
    clock_rfc3339(message->at_ms, at);
    struct span subject = view != NULL ? cut_text(view->subject, SUBJECT_MAX) : SPAN_LIT("");
    int status = buf_printf(out, "\n---- %zu. %s  %.*s\n\n", number, at, SPAN_FMT(subject));
    if (status != ERR_OK || view == NULL || !view->has_text) {
        return status == ERR_OK ? buf_append(out, SPAN_LIT("(see the attachment)\n")) : status;
    }
    struct span text = cut_text(span_trim(view->text), ITEM_TEXT_MAX);
    status = buf_append(out, text);
    bool whole = text.len == span_trim(view->text).len;
    return status == ERR_OK ? buf_append(out, whole ? SPAN_LIT("\n")
                                                    : SPAN_LIT("...\n(more in the attachment)\n"))
                            : status;
}

/* What is read of each message; NULL where it cannot be. */
static int read_all(const struct digest *digest, struct arena *arena, struct mail_view **views)
{
    for (size_t i = 0; i < digest->count; i++) {
        struct err ignored;
        views[i] = arena_alloc(arena, sizeof *views[i]);
        if (views[i] == NULL) {
            return ERR_NOMEM;
        }
        *views[i] = (struct mail_view){0};
        if (mime_read(digest->messages[i].bytes, arena, views[i], &ignored) != ERR_OK) {
            views[i] = NULL; /* it is attached as it is */
        }
    }
    return ERR_OK;
}

static int write_text(const struct digest *digest, struct mail_view *const *views, struct buf *out)
{
    char first[CLOCK_TEXT_MAX];
    char last[CLOCK_TEXT_MAX];
    clock_rfc3339(digest->messages[0].at_ms, first);
    clock_rfc3339(digest->messages[digest->count - 1].at_ms, last);
    int status = buf_printf(out, "%zu messages from %s to %s. Each is attached whole.\n",
                            digest->count, first, last);
    for (size_t i = 0; i < digest->count && status == ERR_OK; i++) {
        status = append_item(out, i + 1, &digest->messages[i], views[i]);
    }
    return status;
}

static int attach_all(const struct digest *digest, struct arena *arena, struct mail_view *out)
{
    struct mail_attachment *list = arena_alloc(arena, digest->count * sizeof *list);
    if (list == NULL) {
        return ERR_NOMEM;
    }
    for (size_t i = 0; i < digest->count; i++) {
        char name[40];
        (void)snprintf(name, sizeof name, "message-%03zu.eml", i + 1);
        list[i] = (struct mail_attachment){
            .name = arena_dup(arena, span_of(name)),
            .content_type = SPAN_LIT("message/rfc822"),
            .content = digest->messages[i].bytes,
        };
    }
    out->attachments = list;
    out->attachment_count = digest->count;
    return ERR_OK;
}

static bool writable(const struct mail_address *mailbox)
{
    return address_valid(mailbox->address, true) && codec_utf8_valid(mailbox->name);
}

/* Those that may stand in a header: cron writes "To: root". */
static int keep_writable(const struct mail_address *list, size_t count, struct arena *arena,
                         struct mail_address **out, size_t *out_count)
{
    struct mail_address *kept = arena_alloc(arena, (count + 1) * sizeof *kept);
    if (kept == NULL) {
        return ERR_NOMEM;
    }
    *out = kept;
    *out_count = 0;
    for (size_t i = 0; i < count; i++) {
        if (writable(&list[i])) {
            kept[(*out_count)++] = list[i];
        }
    }
    return ERR_OK;
}

/* Sender and recipients as the first one's header has them. What cannot be written again is left
 * out; the sender is then the envelope's, or the gateway. */
static int take_addresses(const struct mail_view *first, struct span sender, const char *hostname,
                          struct arena *arena, struct mail_view *out)
{
    char text[300];
    (void)snprintf(text, sizeof text, "postmaster@%.255s", hostname);
    out->from = first->from;
    if (!writable(&out->from)) {
        bool named = address_valid(sender, true);
        out->from = (struct mail_address){.address = named ? sender
                                                           : arena_dup(arena, span_of(text))};
    }
    int status = keep_writable(first->to, first->to_count, arena, &out->to, &out->to_count);
    if (status == ERR_OK) {
        status = keep_writable(first->cc, first->cc_count, arena, &out->cc, &out->cc_count);
    }
    return status != ERR_OK ? status
                            : keep_writable(first->reply_to, first->reply_to_count, arena,
                                            &out->reply_to, &out->reply_to_count);
}

static int make_view(const struct digest *digest, const struct mail_view *first, struct span sender,
                     const char *hostname, struct arena *arena, struct mail_view *out)
{
    char text[SUBJECT_MAX + 64];
    struct mail_header *headers = arena_alloc(arena, sizeof *headers);
    if (headers == NULL) {
        return ERR_NOMEM;
    }
    (void)snprintf(text, sizeof text, "%zu", digest->count);
    headers[0] = (struct mail_header){.name = SPAN_LIT("X-Heave-Digest"),
                                      .value = arena_dup(arena, span_of(text))};
    *out = (struct mail_view){
        .headers = headers,
        .header_count = 1,
        .has_text = true,
    };
    (void)snprintf(text, sizeof text, "Digest of %zu: %.*s", digest->count,
                   SPAN_FMT(cut_text(first->subject, SUBJECT_MAX)));
    out->subject = arena_dup(arena, span_of(text));
    struct buf id;
    buf_init(&id, 1024);
    int status = take_addresses(first, sender, hostname, arena, out);
    if (status != ERR_OK) {
        return status;
    }
    status = buf_printf(&id, "<%.*s@%s>", SPAN_FMT(digest->id), hostname);
    out->message_id = status == ERR_OK ? arena_dup(arena, buf_span(&id)) : (struct span){0};
    buf_release(&id);
    bool made = headers[0].value.data != NULL && out->subject.data != NULL &&
                out->message_id.data != NULL;
    return made ? ERR_OK : ERR_NOMEM;
}

static int compose_several(const struct digest *digest, struct mail_view *const *views,
                           struct span sender, const char *hostname, int64_t now_ms,
                           struct arena *arena, struct buf *out, struct digest_mail *facts,
                           struct err *err)
{
    const struct mail_view unread = {.has_text = false};
    struct mail_view view;
    struct buf text;
    char date[CLOCK_TEXT_MAX];
    clock_rfc5322(now_ms, date);
    buf_init(&text, TEXT_MAX);
    int status = make_view(digest, views[0] != NULL ? views[0] : &unread, sender, hostname, arena,
                           &view);
    status = status == ERR_OK ? write_text(digest, views, &text) : status;
    status = status == ERR_OK ? attach_all(digest, arena, &view) : status;
    status = status == ERR_OK ? buf_printf(out, "Date: %s\r\n", date) : status;
    if (status != ERR_OK) {
        buf_release(&text);
        return err_set(err, status, "There is no room for the digest.");
    }
    view.text = buf_span(&text);
    const struct mime_options options = {.boundary = SPAN_LIT("")};
    status = mime_compose(&view, &options, out, err);
    buf_release(&text);
    *facts = (struct digest_mail){
        .from = view.from.address, .message_id = view.message_id, .subject = view.subject};
    return status;
}

int digest_mail_compose(const struct digest *digest, struct span sender, const char *hostname,
                        int64_t now_ms, struct arena *arena, struct buf *out,
                        struct digest_mail *facts, struct err *err)
{
    if (digest->count == 0) {
        return err_set(err, ERR_INVAL, "The collection is empty.");
    }
    struct mail_view **views = arena_alloc(arena, digest->count * sizeof *views);
    if (views == NULL || read_all(digest, arena, views) != ERR_OK) {
        return err_set(err, ERR_NOMEM, "There is no memory for the digest.");
    }
    if (digest->count > 1) {
        return compose_several(digest, views, sender, hostname, now_ms, arena, out, facts, err);
    }
    *facts = (struct digest_mail){0};
    if (views[0] != NULL) {
        *facts = (struct digest_mail){.from = views[0]->from.address,
                                      .message_id = views[0]->message_id,
                                      .subject = cut_text(views[0]->subject, SUBJECT_MAX)};
    }
    int status = buf_append(out, digest->messages[0].bytes);
    return status == ERR_OK ? ERR_OK : err_set(err, status, "There is no memory for the digest.");
}
