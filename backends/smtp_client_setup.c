#include "backends/smtp_client_internal.h"
#include "gateway/base/codec.h"

static void send_hello(struct smtp_client *client, enum smtp_state state)
{
    client->extensions = 0;
    client->size_limit = 0;
    client->state = state;
    smtp_client_put(client, state == STATE_EHLO ? SPAN_LIT("EHLO ") : SPAN_LIT("HELO "));
    smtp_client_put(client, span_of(client->conf->hostname));
    smtp_client_put(client, SPAN_LIT("\r\n"));
}

static void become_ready(struct smtp_client *client)
{
    client->state = STATE_READY;
    client->was_ready = true;
    client->ops->on_ready(client->ctx);
}

/* Writes a line that holds a secret without leaving copies of ours behind. */
static void put_secret(struct smtp_client *client, struct span prefix, struct span secret)
{
    struct buf line;
    buf_init_secret(&line, 4096);
    int rc = buf_append(&line, prefix);
    if (rc == 0) {
        rc = codec_base64_encode(secret, 0, &line);
    }
    if (rc == 0) {
        rc = buf_append(&line, SPAN_LIT("\r\n"));
    }
    if (rc == 0) {
        rc = client->ops->write(client->ctx, buf_span(&line));
    }
    buf_release(&line);
    if (rc != 0) {
        smtp_client_end(client, VERDICT_TRANSIENT, "The sign-in could not be written.");
    }
}

/* RFC 4616: authorization identity (empty), user, password, with NUL between. */
static void send_plain(struct smtp_client *client)
{
    struct buf message;
    buf_init_secret(&message, 2048);
    int rc = buf_append_byte(&message, '\0');
    if (rc == 0) {
        rc = buf_append(&message, span_of(client->conf->user));
    }
    if (rc == 0) {
        rc = buf_append_byte(&message, '\0');
    }
    if (rc == 0) {
        rc = buf_append(&message, span_of(client->conf->password));
    }
    client->state = STATE_AUTH_FINAL;
    if (rc == 0) {
        put_secret(client, SPAN_LIT("AUTH PLAIN "), buf_span(&message));
    } else {
        smtp_client_end(client, VERDICT_CONFIG,
                        "The user name or password is too long for AUTH PLAIN.");
    }
    buf_release(&message);
}

static void sign_in(struct smtp_client *client)
{
    if (client->conf->user == NULL) {
        become_ready(client);
        return;
    }
    if (client->conf->password_needs_tls && !client->tls) {
        smtp_client_end(
            client, VERDICT_CONFIG,
            "The server did not offer STARTTLS, and the password is not sent without it.");
        return;
    }
    bool login = (client->extensions & SMTP_EXT_AUTH_LOGIN) != 0;
    bool plain = (client->extensions & SMTP_EXT_AUTH_PLAIN) != 0;
    if (plain && !(login && client->conf->prefer_login)) {
        send_plain(client);
    } else if (login) {
        client->state = STATE_AUTH_LOGIN;
        smtp_client_put(client, SPAN_LIT("AUTH LOGIN\r\n"));
    } else {
        smtp_client_end(client, VERDICT_CONFIG,
                        "The server offers neither AUTH LOGIN nor AUTH PLAIN.");
    }
}

static void after_hello(struct smtp_client *client)
{
    enum smtp_starttls wanted = client->conf->starttls;
    if (client->tls || wanted == SMTP_STARTTLS_NEVER) {
        sign_in(client);
    } else if ((client->extensions & SMTP_EXT_STARTTLS) != 0) {
        client->state = STATE_STARTTLS;
        smtp_client_put(client, SPAN_LIT("STARTTLS\r\n"));
    } else if (wanted == SMTP_STARTTLS_REQUIRED) {
        smtp_client_end(client, VERDICT_CONFIG, "The server does not offer STARTTLS.");
    } else {
        sign_in(client);
    }
}

static void parse_auth(struct smtp_client *client, struct span mechanisms)
{
    while (mechanisms.len > 0) {
        struct span name = span_cut(&mechanisms, ' ');
        if (span_ieq(name, SPAN_LIT("LOGIN"))) {
            client->extensions |= SMTP_EXT_AUTH_LOGIN;
        } else if (span_ieq(name, SPAN_LIT("PLAIN"))) {
            client->extensions |= SMTP_EXT_AUTH_PLAIN;
        }
    }
}

void smtp_client_setup_extension(struct smtp_client *client, struct span line)
{
    static const struct {
        const char *keyword;
        unsigned bit;
    } keywords[] = {
        {"PIPELINING", SMTP_EXT_PIPELINING}, {"SIZE", SMTP_EXT_SIZE},
        {"8BITMIME", SMTP_EXT_8BITMIME},     {"SMTPUTF8", SMTP_EXT_SMTPUTF8},
        {"STARTTLS", SMTP_EXT_STARTTLS},     {"DSN", SMTP_EXT_DSN},
        {"CHUNKING", SMTP_EXT_CHUNKING},     {"ENHANCEDSTATUSCODES", SMTP_EXT_ENHANCEDSTATUSCODES},
    };
    struct span rest = span_trim(line);
    if (span_istarts(rest, SPAN_LIT("AUTH="))) {
        parse_auth(client, span_make(rest.data + 5, rest.len - 5)); /* a form before RFC 2554 */
        return;
    }
    struct span keyword = span_cut(&rest, ' ');
    if (span_ieq(keyword, SPAN_LIT("AUTH"))) {
        parse_auth(client, rest);
        return;
    }
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) {
        if (span_ieq(keyword, span_of(keywords[i].keyword))) {
            client->extensions |= keywords[i].bit;
        }
    }
    if (span_ieq(keyword, SPAN_LIT("SIZE")) &&
        span_to_u64(span_trim(rest), UINT64_MAX / 2, &client->size_limit) != 0) {
        client->size_limit = 0; /* "SIZE" alone, or nonsense: no limit was said */
    }
}

static void on_starttls_reply(struct smtp_client *client)
{
    if (client->reply.code == 220) {
        client->state = STATE_TLS;
        smtp_client_flush(client);
        client->ops->on_start_tls(client->ctx);
    } else if (client->conf->starttls == SMTP_STARTTLS_OFFERED && client->reply.code != 421) {
        sign_in(client);
    } else {
        smtp_client_end_refused(client, PHASE_CONNECT);
    }
}

static void on_login_reply(struct smtp_client *client, const char *secret, enum smtp_state next)
{
    if (client->reply.code != 334) {
        smtp_client_end_refused(client, PHASE_AUTH);
        return;
    }
    client->state = next;
    put_secret(client, SPAN_LIT(""), span_of(secret));
}

static void on_hello_reply(struct smtp_client *client)
{
    if (client->reply.code == 250) {
        after_hello(client);
    } else if (client->state == STATE_EHLO && client->reply.code >= 500) {
        send_hello(client, STATE_HELO); /* RFC 5321 3.2: an old server */
    } else {
        smtp_client_end_refused(client, PHASE_CONNECT);
    }
}

void smtp_client_setup_reply(struct smtp_client *client)
{
    switch (client->state) {
    case STATE_GREETING:
        if (client->reply.code == 220) {
            send_hello(client, STATE_EHLO);
        } else {
            smtp_client_end_refused(client, PHASE_CONNECT);
        }
        break;
    case STATE_EHLO:
    case STATE_HELO:
        on_hello_reply(client);
        break;
    case STATE_STARTTLS:
        on_starttls_reply(client);
        break;
    case STATE_AUTH_LOGIN:
        on_login_reply(client, client->conf->user, STATE_AUTH_USER);
        break;
    case STATE_AUTH_USER:
        on_login_reply(client, client->conf->password, STATE_AUTH_FINAL);
        break;
    case STATE_AUTH_FINAL:
        if (client->reply.code == 235) {
            become_ready(client);
        } else {
            smtp_client_end_refused(client, PHASE_AUTH);
        }
        break;
    case STATE_TLS:
    case STATE_READY:
    case STATE_QUIT:
    case STATE_ENDED:
        UNREACHABLE(); /* not asked in these */
    }
}

void smtp_client_setup_hello(struct smtp_client *client)
{
    send_hello(client, STATE_EHLO);
}
