"""Chat templates that use what published templates use, and conversations for them."""

TEMPLATES = {
    "markers": """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "headers": """\
{{- bos_token }}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- 'Tools: ' + tools | tojson }}{% endif %}
{{- system }}{{ '<|eot_id|>' }}
{%- for message in messages %}
    {%- generation %}
    {{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' ~ message['content'] | trim ~ '<|eot_id|>' }}
    {%- endgeneration %}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
    "brackets": """\
{{ bos_token }}{% set ns = namespace(system='', turns=0) %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% set ns.system = message.content %}{% continue %}{% endif %}
{%- if message['role'] == 'user' %}
{%- set ns.turns = ns.turns + 1 -%}
{{ '[INST] ' }}{% if loop.last and ns.system %}{{ ns.system + '\\n\\n' }}{% endif %}{{ message['content'].strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token }}
{%- else %}{{ raise_exception('unknown role: ' + message['role']) }}
{%- endif %}
{%- endfor %}
""",
    "thinking": """\
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{% set content = message.content %}{% else %}{% set content = '' %}{% endif %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last %}
            {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content | replace('<b>', '') + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}
""",
    "python": """\
{% macro line(name, value='') %}{{ name }}={{ value }};{% endmacro %}
{{ line('prompt', add_generation_prompt) }}{{ line('none', none) }}{{ line(value=1.5, name='float') }}
{% for key, value in messages[0].items() %}
{{ loop.index }}/{{ loop.length }} {{ key | upper }} {{ value | tojson }}
{% endfor %}
{{ messages | tojson }} {{ messages | tojson(indent=2) }} {{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ undefined_thing }}|{{ messages[-1].content[:5] }}
{{ 'yes' if messages | length > 1 else 'no' }} {{ "a" ~ 1 ~ "b" }} {{ '%s' | length }} {{ messages[0]['absent'] is defined }}
{{ tools is iterable }} {{ tools is sequence }} {{ '' is iterable }} {{ 'x' is sequence }} {{ messages[0] is sequence }}
{{ range(2) is iterable }} {{ absent is iterable }} {{ messages[0] is mapping }} {{ 1 is iterable }} {{ tools is none }}
""",
}

CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "\n\nHi  there \n"},
     {"role": "assistant", "content": "Hi."}, {"role": "user", "content": " a < b && c > d [x] \"q\" "}],
    [{"role": "user", "content": "Größe 路由器 e\u0301 🙂"},
     {"role": "assistant", "content": "<think>\nhm\n</think>\n\n<b>yes</b>"}, {"role": "user", "content": ""},
     {"role": "assistant", "content": "<think>a</think>b"}],
]
