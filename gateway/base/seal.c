#include "gateway/base/seal.h"

#include <limits.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

struct seal {
    EVP_CIPHER_CTX *ctx;
    EVP_CIPHER *cipher; /* fetched once: looking it up costs more than sealing a small message */
};

struct seal *seal_new(void)
{
    struct seal *seal = mem_zero(sizeof(*seal));
    seal->ctx = EVP_CIPHER_CTX_new();
    seal->cipher = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    ASSERT(seal->ctx != NULL && seal->cipher != NULL);
    return seal;
}

void seal_free(struct seal **seal)
{
    if (*seal != NULL) {
        EVP_CIPHER_CTX_free((*seal)->ctx); /* cleanses the key schedule */
        EVP_CIPHER_free((*seal)->cipher);
        mem_free(*seal);
        *seal = NULL;
    }
}

void seal_derive(const unsigned char key[SEAL_KEY_BYTES], struct span context,
                 unsigned char out[SEAL_KEY_BYTES])
{
    unsigned len = 0;
    const unsigned char *made = HMAC(EVP_sha256(), key, SEAL_KEY_BYTES,
                                     (const unsigned char *)context.data, context.len, out, &len);
    ASSERT(made != NULL && len == SEAL_KEY_BYTES);
}

/* Empty bytes may have no address, which OpenSSL takes for "this is the tag's turn". */
static bool feed(EVP_CIPHER_CTX *ctx, struct span in, char *out)
{
    int len = 0;
    ASSERT(in.len <= INT_MAX);
    return in.len == 0 || EVP_CipherUpdate(ctx, (unsigned char *)out, &len,
                                           (const unsigned char *)in.data, (int)in.len) == 1;
}

int seal_close(struct seal *seal, const unsigned char key[SEAL_KEY_BYTES],
               const unsigned char nonce[SEAL_NONCE_BYTES], struct span aad, struct span plain,
               char *out, unsigned char out_tag[SEAL_TAG_BYTES])
{
    unsigned char rest[SEAL_TAG_BYTES];
    int len = 0;
    EVP_CIPHER_CTX *ctx = seal->ctx;
    bool good = EVP_EncryptInit_ex2(ctx, seal->cipher, key, nonce, NULL) == 1 &&
                feed(ctx, aad, NULL) && feed(ctx, plain, out) &&
                EVP_EncryptFinal_ex(ctx, rest, &len) == 1 &&
                EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, SEAL_TAG_BYTES, out_tag) == 1;
    return good ? 0 : ERR_NOMEM;
}

int seal_open(struct seal *seal, const unsigned char key[SEAL_KEY_BYTES],
              const unsigned char nonce[SEAL_NONCE_BYTES], struct span aad, struct span sealed,
              const unsigned char tag[SEAL_TAG_BYTES], char *out)
{
    unsigned char rest[SEAL_TAG_BYTES];
    unsigned char wanted[SEAL_TAG_BYTES];
    int len = 0;
    EVP_CIPHER_CTX *ctx = seal->ctx;
    memcpy(wanted, tag, sizeof(wanted));
    bool good = EVP_DecryptInit_ex2(ctx, seal->cipher, key, nonce, NULL) == 1 &&
                feed(ctx, aad, NULL) && feed(ctx, sealed, out) &&
                EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, SEAL_TAG_BYTES, wanted) == 1;
    if (!good) {
        mem_wipe(out, sealed.len);
        return ERR_NOMEM;
    }
    if (EVP_DecryptFinal_ex(ctx, rest, &len) != 1) {
        mem_wipe(out, sealed.len);
        return ERR_DENIED;
    }
    return 0;
}
