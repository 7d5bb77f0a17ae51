/* AUTH PLAIN and LOGIN (RFC 4954, RFC 4616). */
#include "gateway/smtp_machine.h"

#include "gateway/base/codec.h"

void smtp_forget_credentials(struct smtp *m)
{
    buf_release(&m->user);
    buf_release(&m->password);
    m->credentials = (struct smtp_credentials){0};
}

bool smtp_auth_usable(const struct smtp *m)
{
    return m->conf->offer_auth && (m->tls || m->conf->auth_without_tls);
}

/* "=" stands for an empty initial response. Errors: ERR_INVAL. */
static int decode(struct span text, bool initial, struct buf *out)
{
    if (initial && span_eq(text, SPAN_LIT("="))) {
        return ERR_OK;
    }
    return codec_base64_decode(text, false, out);
}

static void auth_undecodable(struct smtp *m, struct buf *out)
{
    m->state = STATE_COMMAND;
    smtp_forget_credentials(m);
    COMPLAIN(m, out, "501 5.5.2 Cannot decode the response as base64");
}

static void ask_auth(struct smtp *m)
{
    m->state = STATE_COMMAND;
    m->credentials.user = buf_span(&m->user);
    m->credentials.password = buf_span(&m->password);
    m->asked = SMTP_EVENT_AUTH;
}

/* RFC 4616: [authorisation identity] NUL user NUL password. Acting for somebody else is nothing we
 * have. */
static int split_plain(struct smtp *m, struct span plain)
{
    struct span acting = {0};
    struct span user = {0};
    size_t first = span_find(plain, '\0');
    if (first == plain.len) {
        return ERR_INVAL;
    }
    acting = span_cut(&plain, '\0');
    size_t second = span_find(plain, '\0');
    if (second == plain.len) {
        return ERR_INVAL;
    }
    user = span_cut(&plain, '\0');
    if (user.len == 0 || (acting.len > 0 && !span_eq(acting, user))) {
        return ERR_DENIED;
    }
    int rc = buf_append(&m->user, user);
    return rc == ERR_OK ? buf_append(&m->password, plain) : rc;
}

static void auth_failed(struct smtp *m, struct buf *out)
{
    m->state = STATE_COMMAND;
    smtp_forget_credentials(m);
    COMPLAIN(m, out, "535 5.7.8 Authentication credentials invalid");
}

static void take_plain(struct smtp *m, struct span text, bool initial, struct buf *out)
{
    struct buf plain;
    buf_init_secret(&plain, SMTP_AUTH_LINE_MAX);
    int rc = decode(text, initial, &plain);
    if (rc == ERR_OK) {
        rc = split_plain(m, buf_span(&plain));
    }
    buf_release(&plain);
    if (rc == ERR_OK) {
        ask_auth(m);
    } else if (rc == ERR_DENIED) {
        auth_failed(m, out);
    } else {
        auth_undecodable(m, out);
    }
}

static void take_user(struct smtp *m, struct span text, bool initial, struct buf *out)
{
    if (decode(text, initial, &m->user) != ERR_OK) {
        auth_undecodable(m, out);
        return;
    }
    m->state = STATE_AUTH_PASSWORD;
    REPLY(m, out, "334 UGFzc3dvcmQ6");
}

static void take_password(struct smtp *m, struct span text, struct buf *out)
{
    if (decode(text, false, &m->password) != ERR_OK) {
        auth_undecodable(m, out);
        return;
    }
    ask_auth(m);
}

static void start_plain(struct smtp *m, struct span initial, struct buf *out)
{
    m->credentials.mechanism = "PLAIN";
    if (initial.len > 0) {
        take_plain(m, initial, true, out);
        return;
    }
    m->state = STATE_AUTH_PLAIN;
    REPLY(m, out, "334 ");
}

static void start_login(struct smtp *m, struct span initial, struct buf *out)
{
    m->credentials.mechanism = "LOGIN";
    if (initial.len > 0) {
        take_user(m, initial, true, out);
        return;
    }
    m->state = STATE_AUTH_USER;
    REPLY(m, out, "334 VXNlcm5hbWU6");
}

void smtp_do_auth(struct smtp *m, struct span args, struct buf *out)
{
    struct span initial = args;
    struct span mechanism = span_cut(&initial, ' ');
    initial = span_trim(initial);
    if (!m->conf->offer_auth) {
        COMPLAIN(m, out, "502 5.5.1 AUTH is not offered here");
    } else if (!m->greeted) {
        COMPLAIN(m, out, "503 5.5.1 Say EHLO first");
    } else if (m->authenticated) {
        COMPLAIN(m, out, "503 5.5.1 Authenticated already");
    } else if (m->in_transaction) {
        COMPLAIN(m, out, "503 5.5.1 Not during a mail transaction");
    } else if (!smtp_auth_usable(m)) {
        COMPLAIN(m, out, "538 5.7.11 Encryption is required for authentication");
    } else if (span_ieq(mechanism, SPAN_LIT("PLAIN"))) {
        start_plain(m, initial, out);
    } else if (span_ieq(mechanism, SPAN_LIT("LOGIN"))) {
        start_login(m, initial, out);
    } else if (mechanism.len == 0) {
        COMPLAIN(m, out, "501 5.5.4 Syntax: AUTH mechanism [response]");
    } else {
        COMPLAIN(m, out, "504 5.5.4 Mechanism not supported; PLAIN and LOGIN are");
    }
}

void smtp_take_auth_line(struct smtp *m, struct span line, struct buf *out)
{
    if (span_eq(line, SPAN_LIT("*"))) {
        m->state = STATE_COMMAND;
        smtp_forget_credentials(m);
        COMPLAIN(m, out, "501 5.7.0 Authentication cancelled");
        return;
    }
    switch (m->state) {
    case STATE_AUTH_PLAIN:
        take_plain(m, line, false, out);
        break;
    case STATE_AUTH_USER:
        take_user(m, line, false, out);
        break;
    case STATE_AUTH_PASSWORD:
        take_password(m, line, out);
        break;
    case STATE_COMMAND:
    case STATE_DATA:
        UNREACHABLE();
    }
}

void smtp_answer_auth(struct smtp *m, bool yes, bool worded, struct buf *out)
{
    smtp_forget_credentials(m);
    if (!yes) {
        m->errors++;
        if (m->errors >= m->conf->max_errors) {
            smtp_reply_closing(m, out, "4.7.0", "Too many errors", "errors");
        }
        return;
    }
    m->authenticated = true;
    m->idle_commands = 0;
    if (!worded) {
        REPLY(m, out, "235 2.7.0 Authentication successful");
    }
}
