// Templates that would run, recurse or print without end, and files that are no templates.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/runtime/text/text_fixtures.h"

namespace moed::text {
namespace {

absl::Status RenderStatus(const std::string& jinja, const std::string& content) {
  static const auto* tokenizer = new std::unique_ptr<Tokenizer>(LoadGolden("qwen"));
  absl::Status status;
  RunOnSmallStack([&] {
    const auto chat_template = TemplateOf(jinja, "qwen");
    status = chat_template.status();
    if (!status.ok()) return;
    const std::vector<ChatMessage> messages = {{"user", content}};
    status = (*chat_template)->Render(messages, false, **tokenizer).status();
  });
  return status;
}

TEST(ChatTemplateLimitsTest, EndlessWorkIsStopped) {
  const std::string loop = "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}";
  EXPECT_EQ(RenderStatus(loop + "{% endfor %}{% endfor %}", "").code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ChatTemplateLimitsTest, EndlessRecursionIsStopped) {
  for (const std::string jinja :
       {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) "
        "}}",
        "{% for m in [[1]] recursive %}{{ loop(messages) }}{% endfor %}"}) {
    EXPECT_EQ(RenderStatus(jinja, "").code(), absl::StatusCode::kResourceExhausted) << jinja;
  }
}

TEST(ChatTemplateLimitsTest, EndlessOutputIsStopped) {
  const std::string jinja = "{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}";
  EXPECT_EQ(RenderStatus(jinja, std::string(1 << 20, 'x')).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ChatTemplateLimitsTest, AbsurdExpressionsAreRefused) {
  const std::string deep =
      "{{ " + std::string(100000, '(') + "1" + std::string(100000, ')') + " }}";
  std::string blocks;
  for (int i = 0; i < 10000; ++i) blocks += "{% if true %}";
  for (const std::string& jinja :
       {deep, blocks, std::string("{{ range(10**9) }}"), std::string("{{ 'x' * 10**12 }}"),
        std::string("{{ 1 // 0 }}"), std::string("{{ missing.attribute }}"),
        std::string("{{ 'a' | nosuchfilter }}"), std::string("{% if %}"), std::string("{{")}) {
    EXPECT_EQ(RenderStatus(jinja, "").code(), absl::StatusCode::kInvalidArgument)
        << jinja.substr(0, 40);
  }
}

TEST(ChatTemplateLimitsTest, BadBytesAndFilesAreRefused) {
  EXPECT_EQ(RenderStatus("{{ messages[0].content }}", "\xff").code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RenderStatus("\xff", "").code(), absl::StatusCode::kInvalidArgument);
  const ScratchDirectory directory;
  for (const std::string config : {"{", "[]", "\xff", "{\"chat_template\": \"{{\"}"}) {
    directory.Write("tokenizer_config.json", config);
    EXPECT_EQ(LoadChatTemplate(directory.path()).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(ChatTemplateLimitsTest, LongConversationsAreWithinTheLimits) {
  const auto tokenizer = LoadGolden("qwen");
  const auto chat_template = TemplateOf(
      "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content|trim }}<|im_end|>\n"
      "{% endfor %}",
      "qwen");
  const std::vector<ChatMessage> messages(20000, {"user", "a <b> c"});
  EXPECT_TRUE((*chat_template)->Render(messages, true, *tokenizer).ok());
}

}  // namespace
}  // namespace moed::text
