#include "gateway/smtp_machine.h"

/* ---- Paths (RFC 5321 4.1.2) ---- */

static struct span skip_spaces(struct span s)
{
    while (s.len > 0 && (s.data[0] == ' ' || s.data[0] == '\t')) {
        s.data++;
        s.len--;
    }
    return s;
}

/* Index of the first `wanted` outside a quoted string; s.len when there is none. A backslash inside
 * quotes takes the next byte with it. */
static size_t find_unquoted(struct span s, char wanted)
{
    bool quoted = false;
    for (size_t i = 0; i < s.len; i++) {
        if (quoted && s.data[i] == '\\') {
            i++;
        } else if (s.data[i] == '"') {
            quoted = !quoted;
        } else if (!quoted && s.data[i] == wanted) {
            return i;
        }
    }
    return s.len;
}

static struct span drop_source_route(struct span path)
{
    if (path.len > 0 && path.data[0] == '@') {
        size_t colon = span_find(path, ':');
        if (colon < path.len) {
            return span_make(path.data + colon + 1, path.len - colon - 1);
        }
    }
    return path;
}

int smtp_take_path(struct span *args, struct span *out_address)
{
    struct span s = skip_spaces(*args);
    if (s.len == 0) {
        return ERR_INVAL;
    }
    bool bracketed = s.data[0] == '<';
    if (bracketed) {
        s.data++;
        s.len--;
    }
    size_t end = find_unquoted(s, bracketed ? '>' : ' ');
    if (bracketed && end == s.len) {
        return ERR_INVAL;
    }
    struct span address = span_make(s.data, end);
    struct span rest = bracketed ? span_make(s.data + end + 1, s.len - end - 1)
                                 : span_make(s.data + end, s.len - end);
    if (rest.len > 0 && rest.data[0] != ' ' && rest.data[0] != '\t') {
        return ERR_INVAL;
    }
    address = bracketed ? drop_source_route(span_trim(address)) : address;
    *out_address = address;
    *args = skip_spaces(rest);
    return ERR_OK;
}

/* ---- Parameters ---- */

bool smtp_take_parameter(struct span *args, struct smtp_parameter *out)
{
    *args = skip_spaces(*args);
    if (args->len == 0) {
        return false;
    }
    struct span word = span_cut(args, ' ');
    size_t equals = span_find(word, '=');
    out->has_value = equals < word.len;
    out->key = span_make(word.data, equals);
    out->value = out->has_value ? span_make(word.data + equals + 1, word.len - equals - 1)
                                : (struct span){.data = word.data, .len = 0};
    return true;
}

/* RFC 3461 section 4: printable ASCII without '+' and '=', or '+' and two upper-case hex digits. */
static bool xtext_valid(struct span s)
{
    for (size_t i = 0; i < s.len; i++) {
        unsigned char c = (unsigned char)s.data[i];
        if (c == '+') {
            static const char digits[] = "0123456789ABCDEF";
            if (s.len - i < 3 || memchr(digits, s.data[i + 1], 16) == NULL ||
                memchr(digits, s.data[i + 2], 16) == NULL) {
                return false;
            }
            i += 2;
        } else if (c < '!' || c > '~' || c == '=') {
            return false;
        }
    }
    return s.len > 0;
}

static int parse_size(const struct smtp_parameter *p, struct smtp_mail_parameters *out)
{
    /* RFC 1870 section 3: 1 to 20 digits; a number beyond 64 bits is above every limit. */
    if (p->value.len == 0 || p->value.len > 20) {
        return ERR_INVAL;
    }
    for (size_t i = 0; i < p->value.len; i++) {
        if (p->value.data[i] < '0' || p->value.data[i] > '9') {
            return ERR_INVAL;
        }
    }
    if (span_to_u64(p->value, UINT64_MAX, &out->size_bytes) != ERR_OK) {
        out->size_bytes = UINT64_MAX;
    }
    return ERR_OK;
}

static int parse_body(const struct smtp_parameter *p, struct smtp_mail_parameters *out)
{
    out->body_8bit = span_ieq(p->value, SPAN_LIT("8BITMIME"));
    return out->body_8bit || span_ieq(p->value, SPAN_LIT("7BIT")) ? ERR_OK : ERR_INVAL;
}

static int parse_smtputf8(const struct smtp_parameter *p, struct smtp_mail_parameters *out)
{
    out->smtputf8 = true;
    return p->has_value ? ERR_INVAL : ERR_OK;
}

/* RFC 4954 section 5: who first submitted it. Nobody downstream trusts us with it, so it is checked
 * and let go. */
static int parse_auth(const struct smtp_parameter *p, struct smtp_mail_parameters *out)
{
    (void)out;
    return xtext_valid(p->value) ? ERR_OK : ERR_INVAL;
}

static const struct {
    const char *key;
    int (*parse)(const struct smtp_parameter *p, struct smtp_mail_parameters *out);
} mail_parameters[] = {
    {.key = "SIZE", .parse = parse_size},
    {.key = "BODY", .parse = parse_body},
    {.key = "SMTPUTF8", .parse = parse_smtputf8},
    {.key = "AUTH", .parse = parse_auth},
};
#define MAIL_PARAMETERS (sizeof mail_parameters / sizeof mail_parameters[0])

int smtp_parse_mail(struct span args, struct smtp_mail_parameters *out)
{
    struct smtp_mail_parameters parsed = {0};
    struct smtp_parameter p;
    bool seen[MAIL_PARAMETERS] = {false};
    while (smtp_take_parameter(&args, &p)) {
        size_t row = 0;
        while (row < MAIL_PARAMETERS && !span_ieq(p.key, span_of(mail_parameters[row].key))) {
            row++;
        }
        if (row == MAIL_PARAMETERS) {
            return ERR_UNSUPPORTED;
        }
        if (seen[row] || mail_parameters[row].parse(&p, &parsed) != ERR_OK) {
            return ERR_INVAL;
        }
        seen[row] = true;
    }
    *out = parsed;
    return ERR_OK;
}
