#include "gateway/api/message_json.h"

#include "gateway/api/problem.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"
#include "gateway/mime.h"
#include "queue/fields.h"

#define POINTER_MAX 160
#define DURATION_MAX_MS (INT64_C(30) * 24 * 3600 * 1000)
#define SEND_AHEAD_MAX_MS (INT64_C(366) * 24 * 3600 * 1000)
#define TAG_BYTES_MAX 64
#define DEDUP_KEY_BYTES_MAX 255
#define PRIVATE_FIELDS_MAX (MESSAGE_JSON_TAGS_MAX + 1)

/* What the readers share. `failed` is memory; complaints are in `errors`. */
struct reading {
    struct arena *arena;
    json_t *errors;
    struct message_json *out;
    size_t max_recipients;
    struct mail_address *from;
    struct mail_address *bcc;
    size_t from_count;
    size_t bcc_count;
    const json_t *tag_list;
    struct span dedup_key;
    bool failed;
};

struct member {
    const char *name;
    void (*read)(struct reading *r, const char *pointer, const json_t *value);
};

static struct span text_of(const json_t *value)
{
    return span_make(json_string_value(value), json_string_length(value));
}

static struct span keep(struct reading *r, struct span text)
{
    struct span kept = arena_dup(r->arena, text);
    r->failed = r->failed || kept.data == NULL;
    return kept;
}

static void *keep_array(struct reading *r, size_t count, size_t size)
{
    size_t bytes = 0;
    void *array = size_mul(count + 1, size, &bytes) == 0 ? arena_alloc(r->arena, bytes) : NULL;
    r->failed = r->failed || array == NULL;
    return array;
}

static bool has_control(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        if (byte < 0x20 || byte == 0x7f) {
            return true;
        }
    }
    return false;
}

/* A string that will stand in a header. */
static bool read_line(struct reading *r, const char *pointer, const json_t *value, struct span *out)
{
    if (!json_is_string(value)) {
        problem_add(r->errors, pointer, "This must be a string.");
        return false;
    }
    if (has_control(text_of(value))) {
        problem_add(r->errors, pointer,
                    "This must not contain line breaks or other control characters.");
        return false;
    }
    *out = keep(r, text_of(value));
    return out->data != NULL;
}

static void read_text(struct reading *r, const char *pointer, const json_t *value, struct span *out,
                      bool *out_has)
{
    if (!json_is_string(value)) {
        problem_add(r->errors, pointer, "This must be a string.");
        return;
    }
    *out = text_of(value); /* lives as long as the JSON, which outlives composing */
    *out_has = true;
}

/* Unknown members. */

static size_t least(size_t a, size_t b, size_t c)
{
    size_t low = a < b ? a : b;
    return low < c ? low : c;
}

/* Levenshtein distance of short names; SIZE_MAX for long ones. */
static size_t name_distance(struct span a, struct span b)
{
    size_t row[33];
    if (a.len > 32 || b.len > 32) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= b.len; j++) {
        row[j] = j;
    }
    for (size_t i = 1; i <= a.len; i++) {
        size_t corner = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b.len; j++) {
            size_t above = row[j];
            row[j] = least(above + 1, row[j - 1] + 1,
                           corner + (a.data[i - 1] == b.data[j - 1] ? 0 : 1));
            corner = above;
        }
    }
    return row[b.len];
}

/* Appends "/name" to a pointer, escaped (RFC 6901 3) and cut. */
static void pointer_join(char out[POINTER_MAX], const char *parent, struct span name)
{
    size_t at = (size_t)snprintf(out, POINTER_MAX, "%s/", parent);
    at = at < POINTER_MAX ? at : POINTER_MAX - 1;
    for (size_t i = 0; i < name.len && at + 4 < POINTER_MAX; i++) {
        if (name.data[i] == '~' || name.data[i] == '/') {
            out[at++] = '~';
            out[at++] = name.data[i] == '~' ? '0' : '1';
        } else {
            out[at++] = name.data[i];
        }
    }
    out[at] = '\0';
}

static void refuse_unknown(struct reading *r, const char *pointer, struct span name,
                           const struct member *members, size_t count)
{
    const char *nearest = NULL;
    size_t best = 3; /* farther is no typing mistake */
    for (size_t i = 0; i < count; i++) {
        size_t distance = name_distance(name, span_of(members[i].name));
        if (distance < best) {
            best = distance;
            nearest = members[i].name;
        }
    }
    if (nearest != NULL) {
        problem_add(r->errors, pointer, "There is no such member; did you mean \"%s\"?", nearest);
    } else {
        problem_add(r->errors, pointer, "There is no such member.");
    }
}

/* Gives every member of `object` to its row. */
static void read_members(struct reading *r, const char *parent, const json_t *object,
                         const struct member *members, size_t count)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)object, key, value)
    {
        char pointer[POINTER_MAX];
        struct span name = span_of(key);
        pointer_join(pointer, parent, name);
        size_t i = 0;
        while (i < count && !span_eq(name, span_of(members[i].name))) {
            i++;
        }
        if (i == count) {
            refuse_unknown(r, pointer, name, members, count);
        } else if (!json_is_null(value)) {
            members[i].read(r, pointer, value); /* null is the same as absent */
        }
    }
}

/* Addresses. */

struct address_list {
    struct mail_address *items;
    size_t count;
    size_t room;
};

static void add_address(struct reading *r, const char *pointer, struct address_list *list,
                        struct span address, struct span name)
{
    if (!address_valid(address, true)) {
        problem_add(r->errors, pointer, "\"%.*s\" is not an e-mail address.",
                    address.len < 100 ? (int)address.len : 100,
                    address.len > 0 ? address.data : "");
        return;
    }
    if (list->count >= list->room) {
        size_t room = list->room == 0 ? 8 : 2 * list->room;
        struct mail_address *items = keep_array(r, room, sizeof(*items));
        if (items == NULL) {
            return;
        }
        if (list->count > 0) {
            memcpy(items, list->items, list->count * sizeof(*items));
        }
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = (struct mail_address){.address = keep(r, address),
                                                       .name = keep(r, name)};
}

/* The display name without its quotes and backslashes. */
static struct span unquote(struct reading *r, struct span display)
{
    if (display.len < 2 || display.data[0] != '"' || display.data[display.len - 1] != '"') {
        return display;
    }
    char *plain = arena_alloc(r->arena, display.len);
    if (plain == NULL) {
        r->failed = true;
        return span_make(NULL, 0);
    }
    size_t len = 0;
    for (size_t i = 1; i + 1 < display.len; i++) {
        if (display.data[i] == '\\' && i + 2 < display.len) {
            i++;
        }
        plain[len++] = display.data[i];
    }
    return span_make(plain, len);
}

/* "a@b", "Name <a@b>", or several of them with commas. */
static void read_address_text(struct reading *r, const char *pointer, const json_t *value,
                              struct address_list *list)
{
    struct span text = {0};
    if (!read_line(r, pointer, value, &text)) {
        return;
    }
    struct span whole = span_trim(text);
    if (address_valid(whole, true)) {
        add_address(r, pointer, list, whole, span_make("", 0));
        return;
    }
    struct span rest = whole;
    struct mailbox mailbox;
    size_t found = 0;
    while (mailbox_next(&rest, r->arena, &mailbox)) {
        add_address(r, pointer, list, mailbox.address, unquote(r, mailbox.display));
        found++;
    }
    if (found == 0) {
        problem_add(r->errors, pointer, "\"%.*s\" holds no e-mail address.",
                    whole.len < 100 ? (int)whole.len : 100, whole.len > 0 ? whole.data : "");
    }
}

/* {"address": ..., "name": ...} */
static void read_address_object(struct reading *r, const char *pointer, const json_t *value,
                                struct address_list *list)
{
    struct span address = {0};
    struct span name = span_make("", 0);
    const char *key = NULL;
    json_t *member = NULL;
    bool good = true;
    json_object_foreach((json_t *)value, key, member)
    {
        char inner[POINTER_MAX];
        pointer_join(inner, pointer, span_of(key));
        if (strcmp(key, "address") == 0) {
            good = read_line(r, inner, member, &address) && good;
        } else if (strcmp(key, "name") == 0) {
            good = (json_is_null(member) || read_line(r, inner, member, &name)) && good;
        } else {
            problem_add(r->errors, inner, "An address has the members \"address\" and \"name\".");
            good = false;
        }
    }
    if (good && address.data == NULL) {
        problem_add(r->errors, pointer, "The member \"address\" is missing.");
    } else if (good) {
        add_address(r, pointer, list, span_trim(address), name);
    }
}

static void read_address_item(struct reading *r, const char *pointer, const json_t *value,
                              struct address_list *list)
{
    if (json_is_string(value)) {
        read_address_text(r, pointer, value, list);
    } else if (json_is_object(value)) {
        read_address_object(r, pointer, value, list);
    } else {
        problem_add(r->errors, pointer, "This must be an address: a string or {address, name}.");
    }
}

static void read_addresses(struct reading *r, const char *pointer, const json_t *value,
                           struct mail_address **out, size_t *out_count)
{
    struct address_list list = {0};
    if (json_is_array(value)) {
        size_t index = 0;
        json_t *item = NULL;
        json_array_foreach(value, index, item)
        {
            char inner[POINTER_MAX];
            (void)snprintf(inner, sizeof(inner), "%.100s/%zu", pointer, index);
            if (list.count > r->max_recipients) {
                break; /* complained about below, once */
            }
            read_address_item(r, inner, item, &list);
        }
    } else {
        read_address_item(r, pointer, value, &list);
    }
    *out = list.items;
    *out_count = list.count;
}

static void read_from(struct reading *r, const char *pointer, const json_t *value)
{
    read_addresses(r, pointer, value, &r->from, &r->from_count);
    if (r->from_count > 1) {
        problem_add(r->errors, pointer, "There can be only one sender.");
    }
}

static void read_to(struct reading *r, const char *pointer, const json_t *value)
{
    read_addresses(r, pointer, value, &r->out->view.to, &r->out->view.to_count);
}

static void read_cc(struct reading *r, const char *pointer, const json_t *value)
{
    read_addresses(r, pointer, value, &r->out->view.cc, &r->out->view.cc_count);
}

static void read_bcc(struct reading *r, const char *pointer, const json_t *value)
{
    read_addresses(r, pointer, value, &r->bcc, &r->bcc_count);
}

static void read_reply_to(struct reading *r, const char *pointer, const json_t *value)
{
    read_addresses(r, pointer, value, &r->out->view.reply_to, &r->out->view.reply_to_count);
}

/* Content. */

static void read_subject(struct reading *r, const char *pointer, const json_t *value)
{
    (void)read_line(r, pointer, value, &r->out->view.subject); /* has complained */
}

static void read_plain(struct reading *r, const char *pointer, const json_t *value)
{
    read_text(r, pointer, value, &r->out->view.text, &r->out->view.has_text);
}

static void read_html(struct reading *r, const char *pointer, const json_t *value)
{
    read_text(r, pointer, value, &r->out->view.html, &r->out->view.has_html);
}

static bool is_token(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        if (byte <= 0x20 || byte >= 0x7f || strchr("()<>@,;:\\\"/[]?=", byte) != NULL) {
            return false;
        }
    }
    return text.len > 0;
}

/* "type/subtype" (RFC 2045 5.1) without parameters. */
static bool is_media_type(struct span text)
{
    struct span subtype = text;
    struct span type = span_cut(&subtype, '/');
    return is_token(type) && is_token(subtype) && text.len < 128;
}

static bool decode_content(struct reading *r, const char *pointer, const json_t *value,
                           struct span *out)
{
    if (!json_is_string(value)) {
        problem_add(r->errors, pointer, "This must be a string: the content in base64.");
        return false;
    }
    struct buf decoded;
    buf_init(&decoded, json_string_length(value) + 4);
    int rc = codec_base64_decode(text_of(value), true, &decoded);
    if (rc == 0) {
        *out = keep(r, buf_span(&decoded));
    } else if (rc == ERR_INVAL) {
        problem_add(r->errors, pointer, "This is not base64.");
    } else {
        r->failed = true;
    }
    buf_release(&decoded);
    return rc == 0;
}

static bool read_attachment_member(struct reading *r, const char *key, const char *pointer,
                                   const json_t *value, struct mail_attachment *a)
{
    if (strcmp(key, "name") == 0) {
        return read_line(r, pointer, value, &a->name);
    }
    if (strcmp(key, "content_id") == 0) {
        bool good = read_line(r, pointer, value, &a->content_id);
        struct span id = a->content_id;
        if (good && id.len > 2 && id.data[0] == '<' && id.data[id.len - 1] == '>') {
            a->content_id = span_make(id.data + 1, id.len - 2);
        }
        return good;
    }
    if (strcmp(key, "content_type") == 0) {
        bool good = read_line(r, pointer, value, &a->content_type);
        if (good && !is_media_type(a->content_type)) {
            problem_add(r->errors, pointer,
                        "This is not a media type such as image/png (without parameters).");
            return false;
        }
        return good;
    }
    if (strcmp(key, "content") == 0) {
        return decode_content(r, pointer, value, &a->content);
    }
    if (strcmp(key, "inline") == 0) {
        if (!json_is_boolean(value)) {
            problem_add(r->errors, pointer, "This must be true or false.");
            return false;
        }
        a->is_inline = json_is_true(value);
        return true;
    }
    problem_add(
        r->errors, pointer,
        "An attachment has the members name, content_type, content, content_id and inline.");
    return false;
}

static void read_attachment(struct reading *r, const char *pointer, const json_t *value,
                            struct mail_attachment *a)
{
    *a = (struct mail_attachment){.content_type = SPAN_LIT("application/octet-stream"),
                                  .content_id = SPAN_LIT("")};
    if (!json_is_object(value)) {
        problem_add(r->errors, pointer, "This must be an object.");
        return;
    }
    const char *key = NULL;
    json_t *member = NULL;
    bool good = true;
    json_object_foreach((json_t *)value, key, member)
    {
        char inner[POINTER_MAX];
        pointer_join(inner, pointer, span_of(key));
        good = (json_is_null(member) || read_attachment_member(r, key, inner, member, a)) && good;
    }
    if (!good) {
        return;
    }
    if (a->name.data == NULL) {
        problem_add(r->errors, pointer, "The member \"name\" is missing.");
    }
    if (a->content.data == NULL) {
        problem_add(r->errors, pointer, "The member \"content\" is missing.");
    }
}

static void read_attachments(struct reading *r, const char *pointer, const json_t *value)
{
    size_t count = json_array_size(value);
    if (!json_is_array(value) || count > MESSAGE_JSON_ATTACHMENTS_MAX) {
        problem_add(r->errors, pointer, "This must be a list of at most %d attachments.",
                    MESSAGE_JSON_ATTACHMENTS_MAX);
        return;
    }
    struct mail_attachment *list = keep_array(r, count, sizeof(*list));
    for (size_t i = 0; i < count && !r->failed; i++) {
        char inner[POINTER_MAX];
        (void)snprintf(inner, sizeof(inner), "%.100s/%zu", pointer, i);
        read_attachment(r, inner, json_array_get(value, i), &list[i]);
    }
    r->out->view.attachments = list;
    r->out->view.attachment_count = r->failed ? 0 : count;
}

/* Field names of RFC 5322 2.2 that the caller may set. */
static const char *header_objection(struct span name)
{
    for (size_t i = 0; i < name.len; i++) {
        unsigned char byte = (unsigned char)name.data[i];
        if (byte <= 0x20 || byte >= 0x7f || byte == ':') {
            return "This is not the name of a header field.";
        }
    }
    if (name.len == 0 || name.len > 100) {
        return "This is not the name of a header field.";
    }
    if (span_ieq(name, SPAN_LIT("Bcc")) || mime_field_reserved(name)) {
        return "This header field is set by its own member or by the gateway.";
    }
    if (span_istarts(name, SPAN_LIT("X-Heave-"))) {
        return "Header fields X-Heave-* are the gateway's own; use lane, tags, send_at and dedup_key.";
    }
    return NULL;
}

static void read_headers(struct reading *r, const char *pointer, const json_t *value)
{
    size_t count = json_object_size(value);
    if (!json_is_object(value) || count > MESSAGE_JSON_HEADERS_MAX) {
        problem_add(r->errors, pointer, "This must be an object of at most %d header fields.",
                    MESSAGE_JSON_HEADERS_MAX);
        return;
    }
    struct mail_header *headers = keep_array(r, count + PRIVATE_FIELDS_MAX, sizeof(*headers));
    if (headers == NULL) {
        return;
    }
    const char *key = NULL;
    json_t *member = NULL;
    size_t used = 0;
    json_object_foreach((json_t *)value, key, member)
    {
        char inner[POINTER_MAX];
        pointer_join(inner, pointer, span_of(key));
        const char *objection = header_objection(span_of(key));
        struct span text = {0};
        if (objection != NULL) {
            problem_add(r->errors, inner, "%s", objection);
        } else if (read_line(r, inner, member, &text)) {
            headers[used++] = (struct mail_header){.name = keep(r, span_of(key)), .value = text};
        }
    }
    r->out->view.headers = headers;
    r->out->view.header_count = used;
}

/* Handling. */

static void read_lane(struct reading *r, const char *pointer, const json_t *value)
{
    (void)read_line(r, pointer, value, &r->out->lane); /* has complained; intake knows the names */
}

static bool is_tag(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char byte = (unsigned char)text.data[i];
        if (byte <= 0x20 || byte >= 0x7f || byte == ',') {
            return false;
        }
    }
    return text.len > 0 && text.len <= TAG_BYTES_MAX;
}

static void read_tags(struct reading *r, const char *pointer, const json_t *value)
{
    size_t count = json_array_size(value);
    if (!json_is_array(value) || count > MESSAGE_JSON_TAGS_MAX) {
        problem_add(r->errors, pointer, "This must be a list of at most %d tags.",
                    MESSAGE_JSON_TAGS_MAX);
        return;
    }
    bool good = true;
    for (size_t i = 0; i < count; i++) {
        const json_t *tag = json_array_get(value, i);
        if (!json_is_string(tag) || !is_tag(text_of(tag))) {
            char inner[POINTER_MAX];
            (void)snprintf(inner, sizeof(inner), "%.100s/%zu", pointer, i);
            problem_add(r->errors, inner,
                        "A tag is 1 to %d printable ASCII characters without spaces and commas.",
                        TAG_BYTES_MAX);
            good = false;
        }
    }
    r->tag_list = good ? value : NULL;
}

static void read_dedup_key(struct reading *r, const char *pointer, const json_t *value)
{
    struct span key = json_is_string(value) ? text_of(value) : SPAN_LIT("");
    bool good = key.len > 0 && key.len <= DEDUP_KEY_BYTES_MAX;
    for (size_t i = 0; i < key.len; i++) {
        good = good && key.data[i] > 0x20 && key.data[i] < 0x7f;
    }
    if (!good) {
        problem_add(r->errors, pointer,
                    "This must be 1 to %d printable ASCII characters without spaces.",
                    DEDUP_KEY_BYTES_MAX);
        return;
    }
    r->dedup_key = key;
}

static void read_send_at(struct reading *r, const char *pointer, const json_t *value)
{
    int64_t at = 0;
    if (!json_is_string(value) || clock_parse_rfc3339(text_of(value), &at) != 0 || at <= 0) {
        problem_add(r->errors, pointer,
                    "This must be a time such as 2026-12-31T23:59:00Z (RFC 3339).");
    } else if (at > clock_wall_ms() + SEND_AHEAD_MAX_MS) {
        problem_add(r->errors, pointer, "This is more than a year ahead.");
    } else {
        r->out->send_at_ms = at;
    }
}

int message_duration(struct span text, int64_t *out_ms)
{
    static const struct {
        char unit;
        int64_t ms;
    } units[] = {{'s', 1000}, {'m', 60000}, {'h', 3600000}, {'d', 86400000}};
    int64_t factor = 1000;
    if (text.len > 1) {
        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
            if (text.data[text.len - 1] == units[i].unit) {
                factor = units[i].ms;
                text.len--;
                break;
            }
        }
    }
    uint64_t count = 0;
    int rc = span_to_u64(text, (uint64_t)(DURATION_MAX_MS / factor), &count);
    if (rc != 0 || count == 0) {
        return ERR_INVAL;
    }
    *out_ms = (int64_t)count * factor;
    return 0;
}

static void read_expires_in(struct reading *r, const char *pointer, const json_t *value)
{
    int64_t ms = 0;
    bool good = json_is_string(value) && message_duration(text_of(value), &ms) == 0;
    if (json_is_integer(value)) {
        json_int_t seconds = json_integer_value(value);
        good = seconds > 0 && seconds <= DURATION_MAX_MS / 1000;
        ms = good ? (int64_t)seconds * 1000 : 0;
    }
    if (!good) {
        problem_add(
            r->errors, pointer,
            "This must be a duration such as \"90s\", \"15m\", \"6h\", \"3d\" or seconds, at most 30 days.");
        return;
    }
    r->out->expires_in_ms = ms;
}

static const struct member members[] = {
    {"from", read_from},
    {"to", read_to},
    {"cc", read_cc},
    {"bcc", read_bcc},
    {"reply_to", read_reply_to},
    {"subject", read_subject},
    {"text", read_plain},
    {"html", read_html},
    {"attachments", read_attachments},
    {"headers", read_headers},
    {"lane", read_lane},
    {"tags", read_tags},
    {"dedup_key", read_dedup_key},
    {"send_at", read_send_at},
    {"expires_in", read_expires_in},
};
#define MEMBER_COUNT (sizeof(members) / sizeof(members[0]))

static void add_private_field(struct reading *r, struct span name, struct span value)
{
    struct mail_view *view = &r->out->view;
    view->headers[view->header_count++] = (struct mail_header){.name = name,
                                                               .value = keep(r, value)};
}

/* Tags and the key of repeats travel as header fields that intake keeps out of the message that is
 * sent. */
static void add_private_fields(struct reading *r)
{
    size_t count = json_array_size(r->tag_list);
    if (count == 0 && r->dedup_key.len == 0) {
        return;
    }
    struct mail_view *view = &r->out->view;
    if (view->headers == NULL) {
        view->headers = keep_array(r, PRIVATE_FIELDS_MAX, sizeof(*view->headers));
    }
    for (size_t i = 0; i < count && !r->failed; i++) {
        add_private_field(r, SPAN_LIT("X-Heave-Tag"), text_of(json_array_get(r->tag_list, i)));
    }
    if (r->dedup_key.len > 0 && !r->failed) {
        add_private_field(r, SPAN_LIT("X-Heave-Dedup-Key"), r->dedup_key);
    }
}

static void add_recipients(struct reading *r, const struct mail_address *list, size_t count)
{
    struct message_json *out = r->out;
    for (size_t i = 0; i < count; i++) {
        out->recipients[out->recipient_count++] = list[i].address;
        out->smtputf8 = out->smtputf8 || codec_has_8bit(list[i].address);
    }
}

/* The envelope: from, and to + cc + bcc in this order. */
static void make_envelope(struct reading *r)
{
    struct message_json *out = r->out;
    struct mail_view *view = &out->view;
    size_t count = view->to_count + view->cc_count + r->bcc_count;
    if (count == 0 && json_array_size(r->errors) == 0) {
        problem_add(r->errors, "/to", "The message has no recipient in to, cc or bcc.");
    }
    if (count > r->max_recipients) {
        problem_add(r->errors, "/to", "A message may have at most %zu recipients.",
                    r->max_recipients);
    }
    if (json_array_size(r->errors) > 0) {
        return;
    }
    out->recipients = keep_array(r, count, sizeof(*out->recipients));
    if (out->recipients == NULL) {
        return;
    }
    view->from = r->from[0];
    out->from = r->from[0].address;
    out->smtputf8 = codec_has_8bit(out->from);
    add_recipients(r, view->to, view->to_count);
    add_recipients(r, view->cc, view->cc_count);
    add_recipients(r, r->bcc, r->bcc_count);
}

/* An address object has two commas, a brace and the comma behind it; the rest is far less. */
#define VALUES_PER_RECIPIENT 8
#define VALUES_OF_THE_REST 20000

bool message_json_affordable(struct span text, size_t max_recipients)
{
    size_t values = 0;
    bool quoted = false;
    for (size_t i = 0; i < text.len; i++) {
        char c = text.data[i];
        if (quoted) {
            i += c == '\\' ? 1 : 0;
            quoted = c != '"';
        } else {
            quoted = c == '"';
            values += c == ',' || c == '[' || c == '{' ? 1 : 0;
        }
    }
    return values / VALUES_PER_RECIPIENT <= max_recipients + VALUES_OF_THE_REST;
}

int message_json_read(const json_t *root, size_t max_recipients, struct arena *arena,
                      struct message_json *out, json_t *errors)
{
    struct message_json result = {0};
    struct reading r = {
        .arena = arena, .errors = errors, .out = &result, .max_recipients = max_recipients};
    if (!json_is_object(root)) {
        problem_add(errors, "", "The message must be a JSON object.");
        return ERR_INVAL;
    }
    read_members(&r, "", root, members, MEMBER_COUNT);
    if (json_array_size(errors) == 0 && r.from_count == 0) {
        problem_add(errors, "/from", "The member \"from\" is missing.");
    }
    make_envelope(&r);
    add_private_fields(&r);
    if (r.failed) {
        return ERR_NOMEM;
    }
    if (json_array_size(errors) > 0) {
        return ERR_INVAL;
    }
    *out = result;
    return 0;
}
