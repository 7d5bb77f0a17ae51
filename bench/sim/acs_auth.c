#include "bench/sim/acs_auth.h"

#include "bench/sim/jwt.h"
#include "gateway/base/clock.h"
#include "gateway/base/codec.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

#define ACS_AUDIENCE "https://communication.azure.com"
#define SIGNED_TEXT_MAX ((size_t)96 * 1024)

/* "HMAC-SHA256 SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature=..." */
struct acs_signature {
    struct span header_names;
    struct span value;
};

static bool read_authorization(struct span text, struct acs_signature *out)
{
    struct span scheme = SPAN_LIT("HMAC-SHA256 ");
    if (!span_istarts(text, scheme)) {
        return false;
    }
    struct span rest = span_make(text.data + scheme.len, text.len - scheme.len);
    *out = (struct acs_signature){0};
    while (rest.len > 0) {
        struct span value = span_cut(&rest, '&');
        struct span name = span_trim(span_cut(&value, '='));
        if (span_ieq(name, SPAN_LIT("SignedHeaders"))) {
            out->header_names = value;
        } else if (span_ieq(name, SPAN_LIT("Signature"))) {
            out->value = value;
        }
    }
    return out->header_names.len > 0 && out->value.len > 0;
}

static struct span signed_value(const struct rest_call *call, struct span name)
{
    char lower[64];
    if (span_ieq(name, SPAN_LIT("host"))) {
        return call->request->authority; /* :authority on HTTP/2 */
    }
    if (name.len >= sizeof(lower)) {
        return (struct span){0};
    }
    for (size_t i = 0; i < name.len; i++) {
        char c = name.data[i];
        lower[i] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
    }
    lower[name.len] = '\0';
    return http_request_header(call->request, lower);
}

/* What a signature must cover to mean anything. The JavaScript SDK signs `date` under Node, the
 * others `x-ms-date`. */
struct covered {
    bool host;
    bool hash;
    struct span date;
};

static int append_signed(struct rest_call *call, struct span names, struct buf *out,
                         struct covered *covered)
{
    bool first = true;
    int result = 0;
    while (result == 0 && names.len > 0) {
        struct span name = span_cut(&names, ';');
        struct span value = signed_value(call, name);
        if (value.data == NULL) {
            return ERR_INVAL;
        }
        covered->host = covered->host || span_ieq(name, SPAN_LIT("host"));
        covered->hash = covered->hash || span_ieq(name, SPAN_LIT("x-ms-content-sha256"));
        if (span_ieq(name, SPAN_LIT("x-ms-date")) || span_ieq(name, SPAN_LIT("date"))) {
            covered->date = value;
        }
        result = first ? 0 : buf_append_byte(out, ';');
        if (result == 0) {
            result = buf_append(out, value);
        }
        first = false;
    }
    return result;
}

static bool hash_good(struct rest_call *call)
{
    unsigned char digest[SHA256_DIGEST_LENGTH];
    struct span body = buf_span(&call->request->body);
    struct span given = http_request_header(call->request, "x-ms-content-sha256");
    struct buf text;
    buf_init(&text, 64);
    (void)SHA256((const unsigned char *)body.data, body.len, digest);
    bool good = codec_base64_encode(span_make((const char *)digest, sizeof(digest)), 0, &text) ==
                    0 &&
                span_eq(buf_span(&text), given);
    buf_release(&text);
    return good;
}

static bool date_good(const struct rest_call *call, struct span date)
{
    int64_t at_ms = 0;
    if (date.data == NULL || clock_parse_http(date, &at_ms) != 0) {
        return false;
    }
    int64_t off_ms = clock_wall_ms() - at_ms;
    int64_t drift_ms = (int64_t)call->sim->conf->acs_drift_s * 1000;
    return off_ms <= drift_ms && off_ms >= -drift_ms;
}

static bool mac_good(struct span key, struct span text, struct span given)
{
    unsigned char mac[EVP_MAX_MD_SIZE];
    unsigned mac_len = 0;
    struct buf encoded;
    buf_init(&encoded, 128);
    bool good = HMAC(EVP_sha256(), key.data, (int)key.len, (const unsigned char *)text.data,
                     text.len, mac, &mac_len) != NULL &&
                codec_base64_encode(span_make((const char *)mac, mac_len), 0, &encoded) == 0 &&
                jwt_secret_eq(buf_span(&encoded), given);
    buf_release(&encoded);
    return good;
}

static bool signature_good(struct rest_call *call, struct span key,
                           const struct acs_signature *signature)
{
    struct covered covered = {0};
    struct buf text;
    buf_init(&text, SIGNED_TEXT_MAX);
    bool good = buf_append(&text, call->request->method) == 0 &&
                buf_append_byte(&text, '\n') == 0 &&
                buf_append(&text, call->request->target) == 0 &&
                buf_append_byte(&text, '\n') == 0 &&
                append_signed(call, signature->header_names, &text, &covered) == 0 &&
                covered.host && covered.hash && date_good(call, covered.date) &&
                mac_good(key, buf_span(&text), signature->value) &&
                (call->too_large || hash_good(call));
    buf_release(&text);
    return good;
}

static bool token_good(struct rest_call *call, struct span token)
{
    struct jwt jwt;
    return jwt_read(span_make((const char *)call->sim->token_key, SIM_TOKEN_KEY_BYTES), token,
                    &jwt) == 0 &&
           span_eq(span_of(jwt.audience), SPAN_LIT(ACS_AUDIENCE)) &&
           jwt.expires_s > clock_wall_ms() / 1000;
}

bool acs_auth_good(struct rest_call *call, struct span key)
{
    struct acs_signature signature;
    struct span token = rest_bearer(call);
    if (call->expired) {
        return false;
    }
    if (token.len > 0) {
        return token_good(call, token);
    }
    struct span authorization = http_request_header(call->request, "authorization");
    return read_authorization(authorization, &signature) && signature_good(call, key, &signature);
}
